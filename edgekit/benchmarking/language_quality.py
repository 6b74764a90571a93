"""What a language model's logits are worth: perplexity and its interval, the distance from a teacher.

Plain maths on tensors and arrays; where logits come from is `language_predictions.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.results import Interval, LanguageQuality

Floats = NDArray[np.float64]

_CONFIDENCE = 0.95
_RESAMPLES = 5_000


@dataclass(frozen=True)
class TeacherScores:
    """What is known of each token with a teacher beside the model."""

    negative_log_likelihood: Floats
    """(N,), the teacher's, nats."""
    divergence: Floats
    """(N,), KL(teacher || model), nats."""
    agrees: NDArray[np.bool_]
    """(N,), whether both hold the same token most likely."""


@dataclass(frozen=True)
class TokenScores:
    """What is known of each predicted token."""

    negative_log_likelihood: Floats
    """(N,), nats."""
    right: NDArray[np.bool_]
    """(N,), whether the text's token is the one held most likely."""
    teacher: TeacherScores | None = None


def score_tokens(logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None) -> TokenScores:
    """Scores the predictions of one document.

    `logits` and `teacher_logits` are (T, V), of any float type; `targets` (T,) int64. Sums over the vocabulary are in
    float32 for narrower types and in the logits' own type otherwise.
    """
    logs = _log_softmax(logits)
    picked = logs.gather(1, targets[:, None])[:, 0]
    best = logs.argmax(dim=1)
    teacher = None
    if teacher_logits is not None:
        teacher_logs = _log_softmax(teacher_logits)
        divergence = (teacher_logs.exp() * (teacher_logs - logs)).sum(dim=1)
        teacher = TeacherScores(
            negative_log_likelihood=_floats(-teacher_logs.gather(1, targets[:, None])[:, 0]),
            divergence=_floats(divergence),
            agrees=(teacher_logs.argmax(dim=1) == best).cpu().numpy(),
        )
    return TokenScores(_floats(-picked), (best == targets).cpu().numpy(), teacher)


def judge_language(
    splits: Mapping[str, Sequence[TokenScores]], *, seed: int = 0, resamples: int = _RESAMPLES
) -> LanguageQuality:
    """Returns the quality over the documents of all splits and, where there are several, on each of them alone.

    Raises:
        ValueError: a split has no document.
    """
    whole = [document for documents in splits.values() for document in documents]
    quality = _judge(whole, " + ".join(splits), seed, resamples)
    if len(splits) == 1:
        return quality
    parts = {name: _judge(documents, name, seed, resamples) for name, documents in splits.items()}
    return quality.model_copy(update={"parts": parts})


def _judge(documents: Sequence[TokenScores], split: str, seed: int, resamples: int) -> LanguageQuality:
    if not documents:
        raise ValueError(f"split '{split}': found no document, expected at least one.")
    sizes = np.array([len(document.right) for document in documents], dtype=np.float64)
    losses = np.array([document.negative_log_likelihood.sum() for document in documents])
    draws = np.random.default_rng(seed).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
    drawn_tokens = draws @ sizes
    cross_entropy = float(losses.sum() / sizes.sum())
    quality = LanguageQuality(
        perplexity=float(np.exp(cross_entropy)),
        perplexity_interval=_interval(np.exp(draws @ losses / drawn_tokens)),
        cross_entropy=cross_entropy,
        accuracy=float(np.concatenate([document.right for document in documents]).mean()),
        tokens=int(sizes.sum()),
        documents=len(documents),
        split=split,
    )
    teachers = [document.teacher for document in documents if document.teacher is not None]
    if len(teachers) != len(documents):
        return quality
    teacher = TeacherScores(
        **{part.name: np.concatenate([getattr(one, part.name) for one in teachers]) for part in fields(TeacherScores)}
    )
    change = losses - np.array([one.negative_log_likelihood.sum() for one in teachers])
    return quality.model_copy(
        update={
            "perplexity_ratio": float(np.exp(change.sum() / sizes.sum())),
            "perplexity_ratio_interval": _interval(np.exp(draws @ change / drawn_tokens)),
            "divergence": float(teacher.divergence.mean()),
            "divergence_p99": float(np.quantile(teacher.divergence, 0.99)),
            "teacher_agreement": float(teacher.agrees.mean()),
        }
    )


def _interval(values: Floats) -> Interval:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), confidence=_CONFIDENCE)


def _log_softmax(logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, dim=-1)


def _floats(values: Tensor) -> Floats:
    found: Floats = values.detach().double().cpu().numpy()
    return found
