"""Recall by label: the teacher against the model that ships, so that a class that was lost shows."""

from __future__ import annotations

from edgekit.reporting.metric import METRICS, as_classifier
from edgekit.reporting.plots.frame import WIDTH, padded, x_grid
from edgekit.reporting.plots.front import marker
from edgekit.reporting.plots.svg import Axis, drawing, line, text
from edgekit.reporting.wording import percent, points
from edgekit.results import AnyQuality, BuildResult, Interval

_LEFT, _RIGHT, _TOP, _ROW = 112.0, WIDTH - 64, 14.0, 40.0
MOST_LABELS = 12
"""With more labels, those that lost most are drawn."""


def final_quality(result: BuildResult) -> AnyQuality | None:
    """Returns the quality of what ships: the first export's, else the last stage's."""
    exported = [export.quality for export in result.exports if export.quality is not None]
    return next(iter(exported + [stage.quality for stage in reversed(result.stages)]), None)


def recall_by_label(result: BuildResult) -> str:
    """Returns one row a label with the recall of the teacher and the final model; nothing where there are no labels."""
    final, before = as_classifier(final_quality(result)), as_classifier(result.teacher_quality)
    if final is None or not final.per_label_recall:
        return ""
    teacher = before.per_label_recall if before else {}
    after = final.per_label_recall
    labels = sorted(after, key=lambda label: after[label] - teacher.get(label, after[label]))[:MOST_LABELS]
    labels = [label for label in after if label in labels]
    values = [100 * found[label] for found in (teacher, after) for label in labels if label in found]
    intervals = final.per_label_recall_intervals
    values += [100 * end for label in labels if label in intervals for end in _ends(intervals[label])]
    low, high = padded(values, 0.06, least=2.0)
    axis = Axis(max(low, 0), min(high, 100), _LEFT, _RIGHT)
    bottom = _TOP + _ROW * len(labels)
    parts = x_grid(axis, (_TOP, bottom), lambda value: f"{value:g}", 5)
    parts.append(text("recall, %", (_LEFT + _RIGHT) / 2, bottom + 34, anchor="middle", class_="axis-title"))
    for index, label in enumerate(labels):
        y = _TOP + _ROW * (index + 0.5)
        if label in intervals:
            start, end = (axis.place(100 * end) for end in _ends(intervals[label]))
            parts.append(line(start, y, end, y, "whisker export"))
        parts += _draw_label(label, teacher.get(label), after[label], axis, y)
    description = "; ".join(f"{label}: {percent(after[label])}" for label in labels)
    return drawing("recall", (WIDTH, bottom + 42), "Recall by label", description, parts)


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _draw_label(label: str, before: float | None, after: float, axis: Axis, y: float) -> list[str]:
    x = axis.place(100 * after)
    shown = label if len(label) <= 17 else label[:16] + "\N{HORIZONTAL ELLIPSIS}"
    parts = [text(shown, 0, y + 4, class_="label")]
    if before is not None:
        start = axis.place(100 * before)
        tone = METRICS["accuracy"].tone(before, after)
        parts.append(line(start, y, x, y, f"change-line {tone}"))
        parts.append(marker("teacher", (start, y), f"teacher: {percent(before)}"))
        parts.append(text(points(after - before), WIDTH, y + 12, anchor="end", class_=f"hint {tone}"))
    parts.append(marker("export", (x, y), f"{label}: {percent(after)}"))
    parts.append(text(percent(after), WIDTH, y - 2 if before is not None else y + 4, anchor="end", class_="label"))
    return parts
