"""The size-quality-latency front: the headline metric against file size, and against measured latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.reporting.findings import distinct_measurements, teacher_bytes, teacher_stage
from edgekit.reporting.metric import build_metric, metric_of, value_with_range
from edgekit.reporting.plots.frame import WIDTH, Frame, metric_axis, metric_ends, padded
from edgekit.reporting.plots.svg import (
    Axis,
    Box,
    drawing,
    element,
    line,
    path,
    place_label,
    rectangle,
    shortened,
    text,
    widest,
)
from edgekit.reporting.speed import writes
from edgekit.reporting.wording import amount, mebibytes, milliseconds
from edgekit.results import AnyQuality, BuildResult, Estimate, ExportResult

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 14, 28.0, 270.0
_LANE = 32.0
"""Height of an estimate: a line of text above a bar."""


@dataclass(frozen=True)
class Point:
    """One model on a front."""

    label: str
    kind: Literal["teacher", "stage", "export"]
    x: float
    quality: AnyQuality
    tip: str


@dataclass(frozen=True)
class Titles:
    """How a front is called."""

    identifier: str
    """Of the drawing in the page."""
    axis: str
    """Of the x axis."""
    against: str
    """What the metric is drawn against, in a sentence."""


SIZE = Titles("size-front", "size of the weights, MiB (log scale)", "size")
LATENCY = Titles("latency-front", "p50 latency, ms (log scale)", "latency")


def draw_front(points: list[Point], titles: Titles, *, journey: bool = False) -> str:
    """Returns the plot of the points' metric against their x, or nothing; with `journey` dots join them in order."""
    if not points:
        return ""
    low, high = padded([point.x for point in points], 0.0)
    axis = Axis(low / 1.5, high * 1.9, _LEFT, _RIGHT, logarithmic=True)
    metric = metric_of(points[0].quality)
    frame = Frame(axis, _metric_axis(points, _BOTTOM), titles.axis, metric.axis_title)
    parts = [*frame.draw(), _journey(points, frame) if journey else "", *_draw_points(points, frame)]
    description = "; ".join(f"{point.label}: {point.tip}" for point in points)
    title = f"{metric.title} against {titles.against}"
    return drawing(titles.identifier, (WIDTH, _BOTTOM + 42), title, description, parts)


def quality_against_size(result: BuildResult) -> str:
    """Returns the plot of the metric against size for the teacher, every stage and every export, or nothing."""
    return draw_front(_size_points(result), SIZE, journey=True)


def quality_against_latency(result: BuildResult) -> str:
    """Returns the plot of the metric against the p50 of a call or token, estimates in their own lanes, or nothing."""
    points = _latency_points(result)
    if not points:
        return ""
    estimates = latency_estimates(result)
    xs = [point.x for point in points] + [end for _, found in estimates for end in (found.low, found.high)]
    low, high = max(min(xs), 1e-4), max(xs)
    bottom = _BOTTOM - (46 if estimates else 0)
    end = bottom + _LANE * len(estimates) + (14 if estimates else 0)  # any number of lanes: the drawing grows
    axis = Axis(low / 1.6, high * 2.0, _LEFT, _RIGHT, logarithmic=True)
    metric = build_metric(result)
    frame = Frame(axis, _metric_axis(points, bottom), "", metric.axis_title)
    parts = [*frame.draw(), *_draw_points(points, frame)]
    parts += _draw_estimates(estimates, axis, bottom + 22)
    title = "p50 of one token, ms (log scale)" if writes(result) else LATENCY.axis
    parts.append(text(title, (_LEFT + _RIGHT) / 2, end + 34, anchor="middle"))
    described = [f"{point.label}: {point.tip}" for point in points]
    described += [f"{target}: estimate, not measured, ~ {amount(found)}" for target, found in estimates]
    return drawing("latency-front", (WIDTH, end + 42), f"{metric.title} against latency", "; ".join(described), parts)


def latency_estimates(result: BuildResult) -> list[tuple[str, Estimate]]:
    """Returns the distinct latency estimates in milliseconds with their targets."""
    found: list[tuple[str, Estimate]] = []
    for export in result.exports:
        for estimate in export.estimates:
            entry = (export.target, estimate)
            if estimate.unit == "ms" and estimate.low > 0 and entry not in found:
                found.append(entry)
    return found


def frontier(points: list[Point]) -> list[Point]:
    """Returns the points that no other beats in both x (lower is better) and the metric, by rising x."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -_goodness(point))):
        if not best or _goodness(point) > _goodness(best[-1]):
            best.append(point)
    return best


def _goodness(point: Point) -> float:
    """Returns the value, turned so that higher is better."""
    value = point.quality.headline.value
    return value if metric_of(point.quality).higher_is_better else -value


def _size_points(result: BuildResult) -> list[Point]:
    points = []
    teacher = teacher_stage(result)
    size = teacher_bytes(result)
    if result.teacher_quality is not None and size:
        points.append(_point("teacher", "teacher", size / 2**20, result.teacher_quality, mebibytes(size)))
    for stage in result.stages:
        if stage is not teacher and stage.model_bytes:
            size_text = mebibytes(stage.model_bytes)
            points.append(_point(stage.kind, "stage", stage.model_bytes / 2**20, stage.quality, size_text))
    for export in _distinct_exports(result):
        if export.quality is not None and export.bytes:
            points.append(
                _point(export.format, "export", export.bytes / 2**20, export.quality, mebibytes(export.bytes))
            )
    return points


def _distinct_exports(result: BuildResult) -> list[ExportResult]:
    distinct: list[ExportResult] = []
    for export in result.exports:
        key = (export.format, export.bytes, export.quality)
        if all((other.format, other.bytes, other.quality) != key for other in distinct):
            distinct.append(export)
    return distinct


def _latency_points(result: BuildResult) -> list[Point]:
    points = []
    teacher = next((export.teacher_comparison for export in result.exports if export.teacher_comparison), None)
    if result.teacher_quality is not None and teacher is not None:
        p50 = teacher.second.timing.p50_ms
        points.append(_point("teacher, float32", "teacher", p50, result.teacher_quality, milliseconds(p50)))
    every = distinct_measurements(result)
    for measured in every:
        export, found = measured.export, measured.export.quality
        if found is not None:
            p50 = measured.measurement.timing.p50_ms
            alone = sum(other.export.format == export.format for other in every) == 1
            one_format = all(other.export.format == export.format for other in every)
            label = export.format if alone else export.target if one_format else f"{export.format}, {export.target}"
            points.append(_point(label, "export", p50, found, milliseconds(p50)))
    return points


def _point(
    label: str, kind: Literal["teacher", "stage", "export"], x: float, quality: AnyQuality, x_text: str
) -> Point:
    return Point(label, kind, x, quality, f"{x_text}, {value_with_range(quality)}")


def _metric_axis(points: list[Point], bottom: float) -> Axis:
    """Returns the axis from `bottom` up, on which higher up is better."""
    intervals = [point.quality.headline.interval for point in points]
    return metric_axis(metric_of(points[0].quality), intervals, (bottom, _TOP), 0.06)


def _draw_points(points: list[Point], frame: Frame) -> list[str]:
    """Returns the frontier, then whiskers, markers and labels; labels avoid markers and each other."""
    corners: list[tuple[float, float]] = []
    for point in frontier(points):
        x, y = _position(point, frame)
        corners += [(x, corners[-1][1] if corners else y), (x, y)]
    parts = [path(corners, "frontier")] if len(corners) > 2 else []
    positions = [_position(point, frame) for point in points]
    taken = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in positions]
    bounds = Box(_LEFT, _TOP - 14, _RIGHT, max(frame.y.start, frame.y.end))
    for point, (x, y) in zip(points, positions, strict=True):
        low, high = (frame.y.place(end) for end in metric_ends(point.quality))
        label = shortened(point.label, _RIGHT - _LEFT)
        label_x, label_y, anchor = place_label(label, (x, y), taken, bounds)
        parts += [
            line(x, low, x, high, f"whisker {point.kind}"),
            marker(point.kind, (x, y), f"{point.label}: {point.tip}"),
            text(label, label_x, label_y, anchor=anchor, class_="label"),
        ]
    return parts


def _position(point: Point, frame: Frame) -> tuple[float, float]:
    scale = metric_of(point.quality).axis_scale
    return frame.x.place(point.x), frame.y.place(scale * point.quality.headline.value)


def _journey(points: list[Point], frame: Frame) -> str:
    return path([_position(point, frame) for point in points], "journey") if len(points) > 1 else ""


def marker(kind: str, at: tuple[float, float], tip: str) -> str:
    """Returns a diamond for a teacher, a circle for a stage, a square for an export."""
    x, y = at
    title = element("title", tip.replace("&", "&amp;").replace("<", "&lt;"))
    if kind == "teacher":
        corners = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f} {x - 7:.1f},{y:.1f}"
        return element("polygon", title, points=corners, class_="marker teacher")
    if kind == "stage":
        return element("circle", title, cx=x, cy=y, r=5, class_="marker stage")
    return element("rect", title, x=x - 5.5, y=y - 5.5, width=11, height=11, rx=2, class_="marker export")


def _draw_estimates(estimates: list[tuple[str, Estimate]], axis: Axis, top: float) -> list[str]:
    """Returns one dashed, hatched bar a lane, each named as an estimate."""
    parts = []
    for index, (target, estimate) in enumerate(estimates):
        y = top + 16 + index * _LANE
        left, right = axis.place(estimate.low), axis.place(estimate.high)
        tip = f"{target}: estimate, not measured: ~ {amount(estimate)}"
        parts.append(rectangle(Box(left, y, right, y + 12), "estimate-bar", tip))
        label = f"~ {shortened(target, WIDTH - widest('~  (estimate)'))} (estimate)"
        x = max(min(left, WIDTH - widest(label)), 0)
        parts.append(text(label, x, y - 4, class_="estimate-text"))
    return parts
