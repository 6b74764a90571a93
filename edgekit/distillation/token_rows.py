"""Losses and gradients of a few tokens at once, from logits, in place: the inner step of the chunked loss.

Rows are taken so few at a time that they stay in the processor's cache through all passes over them. Nothing here
knows heads, chunks or autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from edgekit.distillation.divergences import Diverged, Divergence, Softmax, diverge, normalize
from edgekit.distillation.losses import IGNORED
from edgekit.distillation.vocabulary_targets import SampledTargets, TopKTargets


@dataclass(frozen=True)
class RowLosses:
    """What was found of n rows."""

    divergence: Tensor
    """(n), times T^2; 0 without a teacher."""
    cross_entropy: Tensor
    """(n), 0 where there is no label."""


@dataclass(frozen=True)
class RowWeights:
    """What each row's losses are multiplied by in the gradient."""

    divergence: Tensor
    """(n, 1), 0 where the divergence does not count."""
    cross_entropy: Tensor
    """(n, 1), 0 where there is no label."""


class Buffers(Protocol):
    """Whatever gives memory of V columns."""

    def take(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Returns (rows, V) of the buffer `name`, holding anything."""


@dataclass
class RowBuffers:
    """Buffers of V columns, each made when it is first asked for and then used again."""

    vocabulary: int
    device: torch.device
    _made: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def take(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Returns (rows, V) of the buffer `name`, holding anything: ask for the most rows first."""
        made = self._made.get((name, dtype))
        if made is None or len(made) < rows:
            made = torch.empty((rows, self.vocabulary), dtype=dtype, device=self.device)
            self._made[name, dtype] = made
        return made[:rows]


@dataclass(frozen=True)
class RowTargets:
    """What n rows are to be like."""

    teacher: Tensor | TopKTargets | SampledTargets | None
    """The teacher's logits, (n, V), which are overwritten; or what is known of it; None: there is no divergence."""
    labels: Tensor | None
    """(n), int64, -100 where there is none; None: there is no cross-entropy."""


def lose(
    logits: Tensor, targets: RowTargets, weights: RowWeights, divergence: Divergence, buffers: Buffers
) -> RowLosses:
    """Returns the losses of n rows and overwrites `logits`, (n, V), with the gradient of their weighted sum."""
    n, temperature = len(logits), divergence.temperature
    hard, soft = logits.new_zeros(n), logits.new_zeros(n)
    labels, teacher = targets.labels, targets.teacher
    q: Tensor | None = None
    if labels is not None and (teacher is None or temperature != 1):
        plain = logits if teacher is None else buffers.take("plain", n, logits.dtype).copy_(logits)
        student = normalize(plain, buffers.take("hard", n, logits.dtype))
        hard, q = _negative_log_likelihood(student, labels), student.probabilities
    if teacher is not None:
        if temperature != 1:
            logits.div_(temperature)
        student = normalize(logits, buffers.take("q", n, logits.dtype))
        if labels is not None and q is None:
            hard = _negative_log_likelihood(student, labels)
        found = _diverge(student, teacher, divergence, buffers)
        soft = found.value * temperature**2
        # T^2 of the loss over the T that divides the logits
        torch.mul(found.gradient, weights.divergence * temperature, out=logits)
        q = found.q if q is None else q
    if labels is None or q is None:
        return RowLosses(soft, hard)
    if teacher is None:
        torch.mul(q, weights.cross_entropy, out=logits)
    else:
        logits.addcmul_(q, weights.cross_entropy)
    logits.scatter_add_(1, labels.clamp(min=0)[:, None], -weights.cross_entropy)
    return RowLosses(soft, hard)


def _diverge(
    student: Softmax, teacher: Tensor | TopKTargets | SampledTargets, divergence: Divergence, buffers: Buffers
) -> Diverged:
    """Returns the divergence from whatever is known of the teacher; all buffers are overwritten."""
    if isinstance(teacher, TopKTargets):
        return _from_top_k(student, teacher, divergence)
    if isinstance(teacher, SampledTargets):
        return _from_samples(student, teacher)
    if divergence.temperature != 1:
        teacher.div_(divergence.temperature)
    return diverge(student, normalize(teacher, buffers.take("p", len(teacher), teacher.dtype)), divergence)


def _from_top_k(student: Softmax, known: TopKTargets, divergence: Divergence) -> Diverged:
    """Returns the divergence of K tokens and the tail; a token's share of the tail's gradient is its share of it."""
    q, token_ids = student.probabilities, known.token_ids
    known_q = q.gather(1, token_ids)  # (n, K)
    # summed over the tail itself: 1 - sum of the known would lose all digits where the tail is small
    tail = q.scatter_(1, token_ids, 0.0).sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny)
    shifted_tail = tail.log() + student.total.log()
    merged = Softmax(
        torch.cat([student.shifted.gather(1, token_ids), shifted_tail], dim=1),
        torch.cat([known_q, tail], dim=1),
        student.total,
    )
    stored = torch.cat([known.log_probs, known.log_tail[:, None]], dim=1).to(q.dtype)
    found = diverge(merged, normalize(stored, torch.empty_like(stored)), divergence)
    gradient = torch.mul(q, found.gradient[:, -1:] / tail, out=student.shifted)
    gradient.scatter_(1, token_ids, found.gradient[:, :-1])
    return Diverged(found.value, q.scatter_(1, token_ids, known_q), gradient)


def _from_samples(student: Softmax, drawn: SampledTargets) -> Diverged:
    """Returns forward KL with the drawn weights in the teacher's place: unbiased, and its value may be below 0."""
    q = student.probabilities
    weights = drawn.weights.to(q.dtype)  # (n, S)
    logs = student.shifted.gather(1, drawn.token_ids) - student.total.log()
    value = -(weights * logs).sum(dim=-1) - drawn.entropy.to(q.dtype)
    gradient = torch.mul(q, weights.sum(dim=-1, keepdim=True), out=student.shifted)
    return Diverged(value, q, gradient.scatter_add_(1, drawn.token_ids, -weights))


def _negative_log_likelihood(student: Softmax, labels: Tensor) -> Tensor:
    found = student.total.log()[:, 0] - student.shifted.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return found.masked_fill_(labels == IGNORED, 0.0)
