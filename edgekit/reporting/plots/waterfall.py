"""The quality waterfall: what each stage gave or took, with the interval of every level."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.reporting.findings import teacher_stage
from edgekit.reporting.plots.frame import WIDTH, padded, x_grid
from edgekit.reporting.plots.front import marker
from edgekit.reporting.plots.svg import Axis, Box, drawing, line, rectangle, text
from edgekit.reporting.wording import accuracy, percent, points
from edgekit.results import BuildResult, Quality

_LEFT, _RIGHT, _TOP, _ROW = 112.0, WIDTH - 64, 14.0, 40.0


@dataclass(frozen=True)
class _Step:
    label: str
    kind: str
    quality: Quality


def quality_waterfall(result: BuildResult) -> str:
    """Returns one row a stage and export: the bar spans from the level before to the level after; or nothing."""
    steps = _steps(result)
    if not steps:
        return ""
    ends = [100 * end for step in steps for end in _ends(step.quality)]
    low, high = padded(ends, 0.04, least=0.5)
    axis = Axis(max(low, 0), min(high, 100), _LEFT, _RIGHT)
    bottom = _TOP + _ROW * len(steps)
    parts = x_grid(axis, (_TOP, bottom), lambda value: f"{value:g}", 5)
    parts.append(text("accuracy, %", (_LEFT + _RIGHT) / 2, bottom + 34, anchor="middle", class_="axis-title"))
    if result.teacher_quality is not None:
        x = axis.place(100 * result.teacher_quality.accuracy)
        parts.append(line(x, _TOP, x, bottom, "reference"))
    before: float | None = None
    for index, step in enumerate(steps):
        parts += _draw_step(step, before, axis, _TOP + _ROW * (index + 0.5))
        before = step.quality.accuracy
    description = "; ".join(f"{step.label}: {accuracy(step.quality)}" for step in steps)
    return drawing("waterfall", (WIDTH, bottom + 42), "Accuracy after each step", description, parts)


def _steps(result: BuildResult) -> list[_Step]:
    """Returns the teacher, the stages and the distinct exported files, each named once."""
    made_teacher = teacher_stage(result)
    steps: list[_Step] = []
    if result.teacher_quality is not None and made_teacher is None:
        steps.append(_Step("teacher", "teacher", result.teacher_quality))
    for stage in result.stages:
        is_teacher = stage is made_teacher
        steps.append(_Step(stage.kind, "teacher" if is_teacher else "stage", stage.quality))
    for export in result.exports:
        exported = _Step(f"{export.format} file", "export", export.quality) if export.quality else None
        if exported is not None and exported not in steps:
            steps.append(exported)
    return steps


def _draw_step(step: _Step, before: float | None, axis: Axis, y: float) -> list[str]:
    value = step.quality.accuracy
    x = axis.place(100 * value)
    low, high = (axis.place(100 * end) for end in _ends(step.quality))
    parts = [
        text(step.label, 0, y + 1 if step.kind == "teacher" else y + 4, class_="label"),
        text(percent(value), WIDTH, y + 4 if before is None else y - 2, anchor="end", class_="label"),
    ]
    if step.kind == "teacher":
        parts.append(text("the teacher", 0, y + 14, class_="hint"))
    if before is not None:
        start = axis.place(100 * before)
        tone = tone_of(value - before)
        tip = f"{step.label}: {points(value - before)} points"
        parts.append(rectangle(Box(min(start, x), y - 8, max(start, x), y + 8), f"change {tone}", tip))
        parts.append(line(start, y - _ROW / 2, start, y + 8, "connector"))
        parts.append(text(points(value - before), WIDTH, y + 12, anchor="end", class_=f"hint {tone}"))
    parts += [
        line(low, y, high, y, f"whisker {step.kind}"),
        line(low, y - 4, low, y + 4, f"whisker {step.kind}"),
        line(high, y - 4, high, y + 4, f"whisker {step.kind}"),
        marker(step.kind, (x, y), f"{step.label}: {accuracy(step.quality)}"),
    ]
    return parts


def _ends(quality: Quality) -> tuple[float, float]:
    return quality.accuracy_interval.low, quality.accuracy_interval.high


def tone_of(change: float) -> str:
    """Returns the class of a change: gain, loss, or none where it rounds to nothing."""
    if abs(change) < 0.0005:
        return "none"
    return "gain" if change > 0 else "loss"
