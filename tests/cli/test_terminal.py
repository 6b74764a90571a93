"""Log lines: what they say of the rate and of the time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgekit.cli import terminal
from edgekit.events import Event


@pytest.fixture
def told(monkeypatch):
    """Tells events at given seconds and returns the lines."""
    clock = [1000.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: clock[0])

    def tell(*events: tuple[float, Event]) -> list[str]:
        output = io.StringIO()
        lines = terminal._LogLines(Console(file=output, width=200))
        for seconds, event in events:
            clock[0] = 1000.0 + seconds
            lines(event)
        return [line.strip() for line in output.getvalue().splitlines()]

    return tell


def training(step: int, text: str = "training", **values: float) -> Event:
    return Event("progress", "distill", text, completed=step, total=100, values=values)


def test_the_first_line_has_no_rate_that_nothing_measured(told):
    assert told((0.0, training(1))) == ["distill: training 1/100 steps"]


def test_a_training_tells_its_own_rate_and_time_left(told):
    lines = told((0.0, training(1, tokens_per_s=812.4, seconds_left=99.0, loss=2.5)))
    assert lines == ["distill: training 1/100 steps, 812.4 tokens/s, 99 s left, loss 2.5000"]


def test_what_was_done_before_a_resume_counts_in_no_rate(told):
    # 60 of 100 were there; 10 more took 20 seconds, so 30 are left for 60 seconds
    texts = [Event("progress", "capture", "teacher", completed=done, total=100, unit="texts") for done in (60, 70)]
    assert told((0.0, texts[0]), (20.0, texts[1])) == [
        "capture: teacher 60/100 texts",
        "capture: teacher 70/100 texts, 0.5/s, 60 s left",
    ]


def test_a_progress_bar_shows_brackets_in_a_name():
    output = io.StringIO()
    display = terminal._Display(Console(file=output, width=120, force_terminal=True, color_system=None))
    with display.progress:
        display(Event("progress", "prepare", "reading reviews[data].csv", completed=1, total=2, unit="rows"))
    assert "reading reviews[data].csv" in output.getvalue()
