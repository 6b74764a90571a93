"""Recall by label: the teacher against the model that ships, so that a class that was lost shows."""

from __future__ import annotations

from edgekit.reporting.findings import final_quality
from edgekit.reporting.metric import METRICS, as_classifier
from edgekit.reporting.plots.frame import padded
from edgekit.reporting.plots.pairs import LEFT, RIGHT, Pair, Titles, draw_pairs
from edgekit.reporting.plots.svg import Axis
from edgekit.results import BuildResult

MOST_LABELS = 12
"""With more labels, those that lost most are drawn."""


def recall_by_label(result: BuildResult) -> str:
    """Returns one row a label with the recall of the teacher and the final model; nothing where there are no labels."""
    final, before = as_classifier(final_quality(result)), as_classifier(result.teacher_quality)
    if final is None or not final.per_label_recall:
        return ""
    teacher = before.per_label_recall if before else {}
    after, intervals = final.per_label_recall, final.per_label_recall_intervals
    lost_most = sorted(after, key=lambda label: after[label] - teacher.get(label, after[label]))[:MOST_LABELS]
    pairs = [
        Pair(label, teacher.get(label), recall, intervals.get(label))
        for label, recall in after.items()
        if label in lost_most
    ]
    values = [pair.after for pair in pairs] + [pair.before for pair in pairs if pair.before is not None]
    values += [end for pair in pairs if pair.interval for end in (pair.interval.low, pair.interval.high)]
    low, high = padded([100 * value for value in values], 0.06, least=2.0)
    axis = Axis(max(low, 0), min(high, 100), LEFT, RIGHT)
    return draw_pairs(Titles("recall", "Recall by label", "recall, %"), pairs, METRICS["accuracy"], axis)
