"""The frame of a plot: grid lines, tick labels and axis titles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.reporting.metric import Metric, metric_of
from edgekit.reporting.plots.svg import Axis, line, short_number, text, width_of
from edgekit.results import AnyQuality, Interval

WIDTH = 480.0
"""View box width of every plot: at 480 the text stays readable on a phone and in two columns."""


@dataclass(frozen=True)
class Frame:
    """Two axes and their titles; y positions grow downwards, so a y axis starts at the bottom unless flipped."""

    x: Axis
    y: Axis
    x_title: str
    y_title: str = ""
    x_label: Callable[[float], str] = short_number
    y_label: Callable[[float], str] = short_number

    def draw(self, x_ticks: int = 6, y_ticks: int = 5) -> list[str]:
        """Returns grid, tick labels and titles."""
        left, right = self.x.start, self.x.end
        bottom, top = max(self.y.start, self.y.end), min(self.y.start, self.y.end)
        parts = []
        for value in self.y.ticks(y_ticks):
            y = self.y.place(value)
            parts += [line(left, y, right, y, "grid"), text(self.y_label(value), left - 7, y + 4, anchor="end")]
        parts += x_grid(self.x, (top, bottom), self.x_label, x_ticks)
        parts.append(line(left, bottom, right, bottom, "axis"))
        parts.append(text(self.x_title, (left + right) / 2, bottom + 34, anchor="middle", class_="axis-title"))
        if self.y_title:
            parts.append(text(self.y_title, left - 7 if left < 60 else 0, top - 10, class_="axis-title"))
        return parts


def x_grid(axis: Axis, between: tuple[float, float], label: Callable[[float], str], wanted: int = 6) -> list[str]:
    """Returns vertical grid lines with labels below; labels that would touch are left out."""
    top, bottom = between
    parts: list[str] = []
    free_from = float("-inf")
    for value in axis.ticks(wanted):
        x, written = axis.place(value), label(value)
        parts.append(line(x, top, x, bottom, "grid"))
        if x - width_of(written) / 2 >= free_from:
            parts.append(text(written, x, bottom + 16, anchor="middle"))
            free_from = x + width_of(written) / 2 + 6
    return parts


def padded(values: list[float], share: float = 0.08, least: float = 1e-9) -> tuple[float, float]:
    """Returns a range that holds `values` with a margin on both sides."""
    low, high = min(values), max(values)
    margin = max((high - low) * share, least)
    return low - margin, high + margin


def metric_axis(
    metric: Metric, intervals: list[Interval], between: tuple[float, float], margin: float, *, flip: bool = True
) -> Axis:
    """Returns the axis of a metric that holds all `intervals`.

    It leads from the first position of `between` to the second by rising goodness; without `flip`, by rising value.
    """
    ends = [metric.axis_scale * end for interval in intervals for end in (interval.low, interval.high)]
    if metric.logarithmic:
        factor = max(max(ends) / min(ends), 1.1) ** margin
        low, high = min(ends) / factor, max(ends) * factor
    else:
        low, high = padded(ends, margin, least=0.5)
    low, high = max(low, 0.0), min(high, metric.axis_most)
    start, end = between
    if flip and not metric.higher_is_better:
        start, end = end, start
    return Axis(low, high, start, end, logarithmic=metric.logarithmic)


def metric_ends(quality: AnyQuality) -> tuple[float, float]:
    """Returns the ends of the metric's interval in the units of its axis."""
    scale, interval = metric_of(quality).axis_scale, quality.headline.interval
    return scale * interval.low, scale * interval.high
