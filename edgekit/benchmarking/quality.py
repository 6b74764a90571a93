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
    split: str
    """Where the rows come from."""


def judge(judged: Judged, teacher_logits: Logits | None = None, *, seed: int = 0) -> Quality:
    """Returns the quality; with the teacher's logits of the same rows, (rows, classes), the change as well."""
    found = judged.logits.argmax(axis=1)
    right = found == judged.labels
    quality = Quality(
        accuracy=float(right.mean()),
        accuracy_interval=wilson_interval(int(right.sum()), len(right)),
        cross_entropy=cross_entropy(judged.logits, judged.labels),
        rows=len(right),
        split=judged.split,
        per_label_recall=_recall(right, judged.labels, judged.names),
    )
    if teacher_logits is None:
        return quality
    teacher_found = teacher_logits.argmax(axis=1)
    teacher_right = teacher_found == judged.labels
    return quality.model_copy(
        update={
            "teacher_agreement": float((found == teacher_found).mean()),
            "accuracy_change": (int(right.sum()) - int(teacher_right.sum())) / len(right),
            "accuracy_change_interval": paired_change_interval(right, teacher_right, seed=seed),
        }
    )


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Returns the mean over rows of -log softmax(logits)[label], in nats, computed in float64."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_shares[np.arange(len(labels)), labels].mean())


def _recall(right: NDArray[np.bool_], labels: Labels, names: list[str]) -> dict[str, float]:
    """Returns the recall of every label that has rows."""
    return {name: float(right[labels == index].mean()) for index, name in enumerate(names) if (labels == index).any()}
