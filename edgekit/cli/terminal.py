"""How events are shown: a live display on a terminal, plain lines in a log, or one JSON object a line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from pydantic import JsonValue
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from edgekit.cli.launch import is_main_process
from edgekit.events import Event, EventSink, ignore

_SECONDS_BETWEEN_LOG_LINES = 10.0


@contextmanager
def listening(*, as_json: bool) -> Iterator[EventSink]:
    """Yields the sink that fits: JSON lines when asked for, a progress display on a terminal, else plain lines.

    Of the processes of a launched run only the main one tells anything.
    """
    if not is_main_process():
        yield ignore
        return
    if as_json:
        yield _json_event
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LogLines(console)
        return
    display = _Display(console)
    with display.progress:
        yield display


def write_json_line(fields: dict[str, JsonValue]) -> None:
    """Writes one compact JSON object, with the time, to standard output."""
    sys.stdout.write(json.dumps({"time": round(time.time(), 3), **fields}) + "\n")
    sys.stdout.flush()


def _json_event(event: Event) -> None:
    counting = ("completed", "total", "unit") if event.kind != "progress" else ()
    fields = {name: value for name, value in asdict(event).items() if name not in counting}
    write_json_line({name: value for name, value in fields.items() if value not in ("", None, {})})


class _Display:
    """A progress bar with rate and time left for the current piece of work, and a line for each finished one."""

    def __init__(self, console: Console) -> None:
        fixed, rest = Column(no_wrap=True, min_width=9), Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self.progress = Progress(
            TextColumn("[bold]{task.fields[stage]}[/]", table_column=fixed),
            TextColumn("{task.description}", table_column=rest, markup=False),  # names may hold brackets
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            transient=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._started = time.perf_counter()

    def __call__(self, event: Event) -> None:
        if event.kind == "progress":
            self._advance(event)
            return
        if event.kind == "stage-started":
            self._started = time.perf_counter()
            key = (event.stage, "")
            self._tasks[key] = self.progress.add_task(event.text, total=None, stage=event.stage, rate="")
        if event.kind in ("stage-finished", "stage-cached"):
            for task in self._tasks.values():
                self.progress.remove_task(task)
            self._tasks.clear()
        line = describe(event, time.perf_counter() - self._started)
        if line:
            self.progress.console.print(line, highlight=False, markup=False)

    def _advance(self, event: Event) -> None:
        key = (event.stage, event.text)
        waiting = self._tasks.pop((event.stage, ""), None)
        if waiting is not None:
            self.progress.remove_task(waiting)
        if key not in self._tasks:
            self._tasks[key] = self.progress.add_task(event.text, total=event.total, stage=event.stage, rate="")
        task = self._tasks[key]
        speed = next((known.speed for known in self.progress.tasks if known.id == task), None)
        rate = f"{speed:,.1f} {event.unit}/s" if speed else ""
        loss = event.values.get("loss")
        rate += f"  loss {loss:.4f}" if loss is not None else ""
        self.progress.update(task, completed=event.completed, total=event.total, rate=rate)
        if event.total is not None and event.completed >= event.total:
            self.progress.remove_task(self._tasks.pop(key))


@dataclass(frozen=True)
class _Beginning:
    """Where a piece of work stood when it was first told of: what was done before has no time of its own."""

    seconds: float
    completed: int


class _LogLines:
    """Plain lines for logs: beginnings and ends, and progress every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0
        self._started = time.perf_counter()
        self._began: dict[tuple[str, str], _Beginning] = {}

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if event.kind == "stage-started":
            self._started = now
            self._began.clear()
        if event.kind == "progress":
            began = self._began.setdefault((event.stage, event.text), _Beginning(now, event.completed))
            if now - self._last < _SECONDS_BETWEEN_LOG_LINES or event.completed == 0:
                return
            self._last = now
            self._print(_progress_line(event, event.completed - began.completed, now - began.seconds))
            return
        line = describe(event, now - self._started)
        if line:
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def describe(event: Event, seconds: float) -> str:
    """Returns the line that tells of an event, or the empty string for one that needs none."""
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
    if event.kind == "stage-started":
        return f"> {event.stage}: {event.text}"
    if event.kind == "stage-finished":
        return f"  {event.stage}: done in {seconds:.1f} s"
    if event.kind == "stage-cached":
        return f"= {event.stage}: cached"
    if event.kind in ("message", "export-finished"):
        return f"  {event.stage}: {event.text}"
    if event.kind == "metric":
        return f"  {event.stage}: {event.text}  {numbers}"
    return ""


def _progress_line(event: Event, done: int, seconds: float) -> str:
    """Returns the line that tells how far work is, given that it did `done` units in the last `seconds`.

    A rate and a time left that the work itself tells, as training does, stand before those made from its progress.
    """
    line = f"  {event.stage}: {event.text} {event.completed}"
    if event.total:
        line += f"/{event.total} {event.unit}"
        line += _rate(event, done / seconds if done > 0 and seconds > 0 else None, event.total)
    loss = event.values.get("loss")
    return line + (f", loss {loss:.4f}" if loss is not None else "")


def _rate(event: Event, measured: float | None, total: int) -> str:
    """Returns rate and time left, each with a comma before; nothing of what is not known yet."""
    told = next(((name, value) for name, value in event.values.items() if name.endswith("_per_s")), None)
    left = event.values.get("seconds_left")
    text = ""
    if told is not None:
        text = f", {told[1]:,.1f} {told[0].removesuffix('_per_s')}/s"
    elif measured is not None:
        text = f", {measured:,.1f}/s"
    if left is None and measured is not None:
        left = (total - event.completed) / measured
    return text if left is None else f"{text}, {left:.0f} s left"
