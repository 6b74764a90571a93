"""The parent's side of any worker: starts a fresh process, asks it one question a line, ends it whatever happens.

What is asked is the subclasses' matter.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from edgekit import errors
from edgekit.artifact import Artifact
from edgekit.benchmarking.devices import HERE, Device, Launch
from edgekit.benchmarking.memory import Memory, limit_memory_of, read_memory_of
from edgekit.benchmarking.processor_time import Look, look_at
from edgekit.errors import EdgekitError, MeasurementError, MemoryLimitError

_TAIL_BYTES = 2000
_LOOK_S = 0.005


@dataclass(frozen=True)
class Opened:
    """What a process told when its model was open."""

    load_ms: float
    cores: list[int]
    baseline_bytes: int
    library_bytes: int
    pid: int | None = None
    """The process that runs the model, where that is not the worker itself: a browser's."""


@dataclass(frozen=True)
class WorkerSettings:
    """How and where a worker runs."""

    threads: int
    """Size of its thread pools, and how many cores it is to be pinned to."""
    timeout_s: float
    """How long one answer may take beyond the time that it was asked for."""
    memory_limit_bytes: int | None = None
    """RLIMIT_DATA from the moment when it opens a model; None: none."""
    device: Device = HERE
    """The machine."""
    program: tuple[str, ...] = ()
    """The command of a worker that is no Python; it is pinned and limited from outside."""


class WorkerProcess:
    """A fresh Python process; use it in a `with` statement, which ends it."""

    def __init__(self, module: str, name: str, settings: WorkerSettings) -> None:
        """Starts nothing yet.

        Args:
            module: what to run, as `python -m` takes it; it answers with `worker.answer_requests`.
            name: what errors call it.
            settings: how and where it runs.
        """
        self.largest: Memory | None = None
        self.cores = settings.device.choose_cores(settings.threads)
        self._module, self._name, self._settings = module, name, settings
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        self._process: subprocess.Popen[str] | None = None
        self._runs_model: int | None = None

    def __enter__(self) -> Self:
        """Starts the process and prepares it.

        Raises:
            MeasurementError: the process died or hung.
            EdgekitError: whatever the preparation raises there.
        """
        try:
            self._start()
            self.prepare()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the process, at once if it does not end by itself."""
        self._end()

    @property
    def pid(self) -> int:
        """Returns the number of the process that runs the model; it must have been started."""
        assert self._process is not None
        return self._runs_model or self._process.pid

    def prepare(self) -> None:
        """Asks what must be asked first; nothing by default."""

    def ask(self, command: str, extra_s: float = 0.0, *, watch: bool = False, **fields: Any) -> dict[str, Any]:
        """Returns the answer to one question; `extra_s` is how long that takes by itself.

        With `watch` the memory of the process is looked at every 5 ms meanwhile, else when the answer is there.

        Raises:
            MemoryLimitError: any of the others, under a memory limit.
            MeasurementError: the process died or hung, or failed in a way that is not edgekit's.
            EdgekitError: the error that was raised there.
        """
        try:
            return self._ask(command, extra_s, fields, watch=watch)
        except EdgekitError as error:
            limit = self._settings.memory_limit_bytes
            if limit is None:
                raise
            raise MemoryLimitError(
                f"memory_limit: found a limit of {limit / 2**20:,.0f} MiB, under which this does not run: {error} "
                "Raise it, or ask for the smallest that it runs in: --memory-limit smallest."
            ) from error

    def _ask(self, command: str, extra_s: float, fields: dict[str, Any], *, watch: bool) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._wait(self._settings.timeout_s + extra_s, watch=watch)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            raise MeasurementError(
                f"{self._name}: no answer to '{command}' within {self._settings.timeout_s + extra_s:.0f} s, so its "
                f"process was ended. Raise timeout_s if one call may take that long.{self._tail()}"
            ) from None
        if line is None:
            raise MeasurementError(f"{self._name}: its process {self._fate()} during '{command}'.{self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failure(command, answer)
        return answer

    def _wait(self, timeout_s: float, *, watch: bool) -> str | None:
        """Returns the next answer; None when the process has ended.

        Raises:
            queue.Empty: there is none in time.
        """
        if not watch:
            line = self._answers.get(timeout=timeout_s)
            self._look_at_memory()
            return line
        deadline = time.monotonic() + timeout_s
        while True:
            self._look_at_memory()
            try:
                return self._answers.get(timeout=_LOOK_S)
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise

    def look(self) -> Look:
        """Looks at the process and the cores that it is pinned to, from outside where that is possible."""
        if self._settings.device.is_here:
            return look_at(self.pid, self.cores)
        return Look.of(self.ask("look", cores=self.cores))

    def _look_at_memory(self) -> None:
        """Notes the memory of a process on this machine; on another one only the worker knows."""
        found = read_memory_of(self.pid) if self._settings.device.is_here else None
        if found is not None and (self.largest is None or found.resident_bytes > self.largest.resident_bytes):
            self.largest = found

    def open_model(self, model: Artifact, runtime: object, **settings: Any) -> Opened:
        """Returns what the process tells after it opened `model` in a runtime of the class of `runtime`.

        Raises:
            ModelError: the runtime cannot open the model.
            MeasurementError: the process died or hung.
        """
        kind = type(runtime)
        if self._settings.program and self._settings.memory_limit_bytes is not None:
            limit_memory_of(self.pid, self._settings.memory_limit_bytes)
        answer = self.ask(
            "open",
            runtime=f"{kind.__module__}:{kind.__qualname__}",
            path=self._settings.device.path_of(model),
            kind=model.kind,
            threads=self._settings.threads,
            cores=self.cores,
            memory_limit_bytes=self._settings.memory_limit_bytes,
            watch=True,
            **settings,
        )
        if "pid" in answer:
            self._runs_model, self.largest = answer["pid"], None
            self._look_at_memory()
        return Opened(
            answer["load_ms"], answer["cores"], answer["baseline_bytes"], answer["library_bytes"], answer.get("pid")
        )

    def memory(self) -> Memory:
        """Returns the memory of the process until now; for processes that opened a model."""
        return Memory(**self.ask("memory"))

    def _start(self) -> None:
        self._process = self._settings.device.start(
            Launch(self._module, self._settings.threads, list(self._settings.program), self.cores), self._errors
        )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        """Passes answers on, then None when the process has closed its end."""
        with stream:
            for line in stream:
                self._answers.put(line)
        self._answers.put(None)

    def _failure(self, command: str, answer: dict[str, Any]) -> EdgekitError:
        """Returns the error that happened over there: the same one when it is edgekit's."""
        kind = getattr(errors, answer["type"], None)
        if isinstance(kind, type) and issubclass(kind, EdgekitError):
            return kind(answer["error"])
        message = str(answer["error"]).strip().splitlines()[0]
        return MeasurementError(f"{self._name}: failed during '{command}': {answer['type']}: {message}{self._tail()}")

    def _fate(self) -> str:
        """Says how the process ended."""
        assert self._process is not None
        code = self._process.wait(timeout=10)
        lost = self._settings.device.fate(code)
        if lost is not None:
            return lost
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        advice = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"was ended by {name}{advice}"

    def _tail(self) -> str:
        """Returns the end of what the process wrote to stderr, as a further sentence; empty when it wrote nothing."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        text = self._errors.read().decode("utf-8", errors="replace").strip()
        return f" The end of its error output:\n{text}" if text else ""

    def _end(self) -> None:
        process = self._process
        if process is not None:
            assert process.stdin is not None
            try:
                process.stdin.close()  # it ends at the end of its input
                process.wait(timeout=1)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
        self._errors.close()
