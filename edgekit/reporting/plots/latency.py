"""Latency distributions: a histogram over the cumulative share of the raw samples, a model against what it is up to."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from edgekit.reporting.plots.frame import WIDTH, Frame
from edgekit.reporting.plots.svg import Axis, drawing, line, path, text
from edgekit.reporting.wording import milliseconds, percent
from edgekit.results import AnyMeasurement, Timing

_LEFT, _RIGHT = 44.0, WIDTH - 14
_HISTOGRAM = (28.0, 112.0)
_CUMULATIVE = (140.0, 280.0)
_BINS = 90
_WIDE = 12.0
"""Ratio of times from which the axis is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """One measurement to draw; `kind` is its colour (export, float, teacher or depth-1 to depth-3)."""

    name: str
    kind: str
    measurement: AnyMeasurement
    part: Timing | None = None
    """The times to draw, where they are not those that the measurement is known by."""

    @property
    def timing(self) -> Timing:
        """Returns the times to draw."""
        return self.part or self.measurement.timing


def latency_distribution(slug: str, curves: list[Curve], noun: str = "call") -> str:
    """Returns the plot of every raw sample of `curves`, cut off after the 99.5th percentile of the slowest.

    `noun` says what the samples are the times of.
    """
    samples = {curve.name: sorted(curve.timing.samples_ms) for curve in curves}
    if not curves or not all(samples.values()):
        return ""
    axis = _time_axis(list(samples.values()))
    parts = _draw_histograms(curves, axis)
    y = Axis(0, 100, _CUMULATIVE[1], _CUMULATIVE[0])
    title = f"latency of one {noun}, ms" + (" (log scale)" if axis.logarithmic else "")
    parts += Frame(axis, y, title, f"share of {noun}s at most as slow, %").draw(y_ticks=4)
    for curve in curves:
        parts += _draw_cumulative(curve, samples[curve.name], axis, y)
    parts += _mark_quantiles(curves, axis, y)
    hidden = sum(len(values) - bisect.bisect_right(values, axis.high) for values in samples.values())
    if hidden:
        slowest = max(values[-1] for values in samples.values())
        note = f"{hidden} slower not drawn, up to {milliseconds(slowest)}"
        parts.append(text(note, _RIGHT, _HISTOGRAM[0] - 10, anchor="end", class_="hint"))
    description = "; ".join(_describe(curve) for curve in curves)
    return drawing(slug, (WIDTH, _CUMULATIVE[1] + 42), "Latency distribution", description, parts)


def _describe(curve: Curve) -> str:
    found = curve.timing
    quantiles = f"p50 {milliseconds(found.p50_ms)}, p95 {milliseconds(found.p95_ms)}, p99 {milliseconds(found.p99_ms)}"
    return f"{curve.name}: {quantiles}, {len(found.samples_ms)} samples"


def _time_axis(samples: list[list[float]]) -> Axis:
    high = max(values[min(int(len(values) * 0.995), len(values) - 1)] for values in samples) * 1.06
    low = min(values[0] for values in samples)
    if low > 0 and high / low > _WIDE:
        return Axis(low / 1.3, high, _LEFT, _RIGHT, logarithmic=True)
    return Axis(0, max(high, 1e-6), _LEFT, _RIGHT)


def _draw_histograms(curves: list[Curve], axis: Axis) -> list[str]:
    """Returns one filled outline a curve; each is scaled to the highest bin of all, by share of its samples."""
    width = (_RIGHT - _LEFT) / _BINS
    shares = {curve.name: _shares(curve.timing.samples_ms, axis, width) for curve in curves}
    highest = max(max(found) for found in shares.values()) or 1.0
    top, bottom = _HISTOGRAM
    parts = [text("samples", _LEFT - 7, top - 10, class_="axis-title"), line(_LEFT, bottom, _RIGHT, bottom, "axis")]
    for curve in curves:
        corners = [(_LEFT, bottom)]
        for index, share in enumerate(shares[curve.name]):
            y = bottom - (bottom - top) * share / highest
            corners += [(_LEFT + index * width, y), (_LEFT + (index + 1) * width, y)]
        parts.append(path([*corners, (_RIGHT, bottom)], f"area {curve.kind}", close=True))
    return parts


def _shares(samples: list[float], axis: Axis, width: float) -> list[float]:
    counts = [0] * _BINS
    for sample in samples:
        if sample <= axis.high:
            counts[min(int((axis.place(sample) - _LEFT) / width), _BINS - 1)] += 1
    return [count / len(samples) for count in counts]


def _draw_cumulative(curve: Curve, samples: list[float], axis: Axis, y: Axis) -> list[str]:
    """Returns the empirical distribution as steps, thinned to what a screen can show."""
    corners = [(axis.place(samples[0]), y.place(0))]
    for index, sample in enumerate(samples):
        if sample > axis.high:
            break
        x, share = axis.place(sample), y.place(100 * (index + 1) / len(samples))
        if x - corners[-1][0] >= 0.4 or index == len(samples) - 1:
            corners += [(x, corners[-1][1]), (x, share)]
    return [path([*corners, (axis.end, corners[-1][1])], f"curve {curve.kind}")]


def _mark_quantiles(curves: list[Curve], axis: Axis, y: Axis) -> list[str]:
    """Returns a drop line from p50 and p95 of each curve, with the interval drawn thick where it crosses."""
    parts = []
    for curve in curves:
        found = curve.timing
        marks = ((0.5, found.p50_ms, found.p50_interval_ms), (0.95, found.p95_ms, found.p95_interval_ms))
        for share, value, interval in marks:
            if value > axis.high:
                continue
            x, level = axis.place(value), y.place(100 * share)
            parts.append(line(x, level, x, y.start, f"drop {curve.kind}"))
            parts.append(line(axis.place(interval.low), level, axis.place(interval.high), level, f"band {curve.kind}"))
            label = f"p{100 * share:g}" if len(curves) > 1 else f"p{100 * share:g} {percent(share)}"
            parts.append(text(label, x + 6, level + 14, class_="hint"))
    return parts
