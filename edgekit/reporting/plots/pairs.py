"""Rows that each compare the teacher with what ships: the form of recall by label and of perplexity by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.reporting.metric import Metric
from edgekit.reporting.plots.frame import WIDTH, x_grid
from edgekit.reporting.plots.front import marker
from edgekit.reporting.plots.svg import Axis, drawing, line, text
from edgekit.results import Interval

LEFT, RIGHT = 112.0, WIDTH - 64
_TOP, _ROW = 14.0, 40.0


@dataclass(frozen=True)
class Pair:
    """One row."""

    label: str
    before: float | None
    """The teacher's value; None without a teacher."""
    after: float
    interval: Interval | None
    """Of the value after."""


@dataclass(frozen=True)
class Titles:
    """What a plot of pairs is called."""

    slug: str
    title: str
    axis: str


def draw_pairs(titles: Titles, pairs: Sequence[Pair], metric: Metric, axis: Axis) -> str:
    """Returns one row a pair: a diamond for the teacher, a square with its interval for what ships, and the change."""
    bottom = _TOP + _ROW * len(pairs)
    parts = x_grid(axis, (_TOP, bottom), lambda value: f"{value:g}", 5)
    parts.append(text(titles.axis, (LEFT + RIGHT) / 2, bottom + 34, anchor="middle", class_="axis-title"))
    for index, pair in enumerate(pairs):
        y = _TOP + _ROW * (index + 0.5)
        if pair.interval is not None:
            start, end = (axis.place(metric.axis_scale * end) for end in (pair.interval.low, pair.interval.high))
            parts.append(line(start, y, end, y, "whisker export"))
        parts += _draw_pair(pair, metric, axis, y)
    description = "; ".join(f"{pair.label}: {metric.show(pair.after)}" for pair in pairs)
    return drawing(titles.slug, (WIDTH, bottom + 42), titles.title, description, parts)


def _draw_pair(pair: Pair, metric: Metric, axis: Axis, y: float) -> list[str]:
    label, before, after = pair.label, pair.before, pair.after
    x = axis.place(metric.axis_scale * after)
    shown = label if len(label) <= 17 else label[:16] + "\N{HORIZONTAL ELLIPSIS}"
    parts = [text(shown, 0, y + 4, class_="label")]
    if before is not None:
        start = axis.place(metric.axis_scale * before)
        tone = metric.tone(before, after)
        parts.append(line(start, y, x, y, f"change-line {tone}"))
        parts.append(marker("teacher", (start, y), f"teacher: {metric.show(before)}"))
        parts.append(text(metric.step(before, after), WIDTH, y + 12, anchor="end", class_=f"hint {tone}"))
    parts.append(marker("export", (x, y), f"{label}: {metric.show(after)}"))
    parts.append(text(metric.show(after), WIDTH, y - 2 if before is not None else y + 4, anchor="end", class_="label"))
    return parts
