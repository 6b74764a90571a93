"""A language model's perplexity on each split, the teacher against what ships: what holds out of the domain shows."""

from __future__ import annotations

from edgekit.reporting.findings import final_quality
from edgekit.reporting.metric import as_classifier, metric_of
from edgekit.reporting.plots.frame import metric_axis
from edgekit.reporting.plots.pairs import LEFT, RIGHT, Pair, Titles, draw_pairs
from edgekit.results import BuildResult


def metric_by_split(result: BuildResult) -> str:
    """Returns one row a split of a language model's text; nothing where there is one split, and for classifiers."""
    final = final_quality(result)
    if final is None or not final.parts or as_classifier(final) is not None:
        return ""
    metric, before = metric_of(final), result.teacher_quality.parts if result.teacher_quality else {}
    pairs = [
        Pair(
            name,
            before[name].headline.value if name in before else None,
            part.headline.value,
            part.headline.interval,
        )
        for name, part in final.parts.items()
    ]
    intervals = [part.headline.interval for part in [*final.parts.values(), *before.values()]]
    axis = metric_axis(metric, intervals, (LEFT, RIGHT), 0.06, flip=False)
    return draw_pairs(Titles("splits", f"{metric.title} by split", metric.axis_title), pairs, metric, axis)
