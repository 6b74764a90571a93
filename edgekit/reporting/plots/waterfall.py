"""The quality waterfall: what each stage gave or took, with the interval of every level."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.reporting.findings import teacher_stage
from edgekit.reporting.metric import build_metric, metric_of, value, value_with_range
from edgekit.reporting.plots.frame import WIDTH, metric_axis, metric_ends, x_grid
from edgekit.reporting.plots.front import marker
from edgekit.reporting.plots.svg import Axis, Box, drawing, line, rectangle, text
from edgekit.results import AnyQuality, BuildResult

_LEFT, _RIGHT, _TOP, _ROW = 112.0, WIDTH - 64, 14.0, 40.0


@dataclass(frozen=True)
class _Step:
    label: str
    kind: str
    quality: AnyQuality


def quality_waterfall(result: BuildResult) -> str:
    """Returns one row a stage and export: the bar spans from the level before to the level after; or nothing."""
    steps = _steps(result)
    if not steps:
        return ""
    metric = build_metric(result)
    intervals = [step.quality.headline.interval for step in steps]
    axis = metric_axis(metric, intervals, (_LEFT, _RIGHT), 0.04, flip=False)
    bottom = _TOP + _ROW * len(steps)
    parts = x_grid(axis, (_TOP, bottom), lambda value: f"{value:g}", 5)
    parts.append(text(metric.axis_title, (_LEFT + _RIGHT) / 2, bottom + 34, anchor="middle", class_="axis-title"))
    if result.teacher_quality is not None:
        x = axis.place(metric.axis_scale * result.teacher_quality.headline.value)
        parts.append(line(x, _TOP, x, bottom, "reference"))
    before: float | None = None
    for index, step in enumerate(steps):
        parts += _draw_step(step, before, axis, _TOP + _ROW * (index + 0.5))
        before = step.quality.headline.value
    description = "; ".join(f"{step.label}: {value_with_range(step.quality)}" for step in steps)
    return drawing("waterfall", (WIDTH, bottom + 42), f"{metric.title} after each step", description, parts)


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
    metric, after = metric_of(step.quality), step.quality.headline.value
    x = axis.place(metric.axis_scale * after)
    low, high = (axis.place(end) for end in metric_ends(step.quality))
    parts = [
        text(step.label, 0, y + 1 if step.kind == "teacher" else y + 4, class_="label"),
        text(value(step.quality), WIDTH, y + 4 if before is None else y - 2, anchor="end", class_="label"),
    ]
    if step.kind == "teacher":
        parts.append(text("the teacher", 0, y + 14, class_="hint"))
    if before is not None:
        start = axis.place(metric.axis_scale * before)
        tone, change = metric.tone(before, after), metric.step(before, after)
        tip = f"{step.label}: {change}{metric.step_title}"
        parts.append(rectangle(Box(min(start, x), y - 8, max(start, x), y + 8), f"change {tone}", tip))
        parts.append(line(start, y - _ROW / 2, start, y + 8, "connector"))
        parts.append(text(change, WIDTH, y + 12, anchor="end", class_=f"hint {tone}"))
    parts += [
        line(low, y, high, y, f"whisker {step.kind}"),
        line(low, y - 4, low, y + 4, f"whisker {step.kind}"),
        line(high, y - 4, high, y + 4, f"whisker {step.kind}"),
        marker(step.kind, (x, y), f"{step.label}: {value_with_range(step.quality)}"),
    ]
    return parts
