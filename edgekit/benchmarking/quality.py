"""What a classifier's logits are worth: accuracy and its interval, cross entropy, recall, the change since a teacher.

Plain maths on arrays; where logits come from is `predictions.py`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.benchmarking.statistics import paired_change_interval, wilson_interval
from edgekit.results import Quality

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """Logits with the truth beside them."""

    logits: Logits
    """(rows, classes), float32."""
    labels: Labels
    """(rows,), indices into `names`."""
    names: list[str]
    """Names of the classes, in the order of the columns."""
    sizes: dict[str, int]
    """Split to its number of rows, in the order of the rows."""


def judge_parts(judged: Judged, teacher_logits: Logits | None = None) -> Quality:
    """Returns the quality over all rows and, where there are several splits, on each of them alone."""
    quality = judge(judged, teacher_logits)
    if len(judged.sizes) == 1:
        return quality
    parts: dict[str, Quality] = {}
    start = 0
    for name, size in judged.sizes.items():
        own = slice(start, start + size)
        part = Judged(judged.logits[own], judged.labels[own], judged.names, {name: size})
        parts[name] = judge(part, None if teacher_logits is None else teacher_logits[own])
        start += size
    return quality.model_copy(update={"parts": parts})


def judge(judged: Judged, teacher_logits: Logits | None = None) -> Quality:
    """Returns the quality over all rows; with the teacher's logits of them, (rows, classes), the change as well."""
    found = judged.logits.argmax(axis=1)
    right = found == judged.labels
    of_label = {name: right[judged.labels == index] for index, name in enumerate(judged.names)}
    hits_of = {name: hits for name, hits in of_label.items() if len(hits)}
    quality = Quality(
        accuracy=float(right.mean()),
        accuracy_interval=wilson_interval(int(right.sum()), len(right)),
        cross_entropy=cross_entropy(judged.logits, judged.labels),
        rows=len(right),
        split=" + ".join(judged.sizes),
        per_label_recall={name: float(hits.mean()) for name, hits in hits_of.items()},
        per_label_recall_intervals={
            name: wilson_interval(int(hits.sum()), len(hits)) for name, hits in hits_of.items()
        },
    )
    if teacher_logits is None:
        return quality
    teacher_found = teacher_logits.argmax(axis=1)
    teacher_right = teacher_found == judged.labels
    return quality.model_copy(
        update={
            "teacher_agreement": float((found == teacher_found).mean()),
            "accuracy_change": (int(right.sum()) - int(teacher_right.sum())) / len(right),
            "accuracy_change_interval": paired_change_interval(right, teacher_right),
        }
    )


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Returns the mean over rows of -log softmax(logits)[label], in nats, computed in float64."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_shares[np.arange(len(labels)), labels].mean())
