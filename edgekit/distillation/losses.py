"""The losses of distillation: pure functions over tensors that know nothing of models, batches or files.

Every function computes in float32 or, given float64, in float64 (bf16 and float16 inputs are widened first), and
reduces over the rows or positions that count: `mean` divides by their number, `sum` does not. The trainer adds up sums
and divides by the numbers of a whole accumulation window, so splitting a window changes nothing.
A mean over nothing is 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["mean", "sum"]

# The score of a padded column: exp gives 0, and unlike -inf it stays finite in differences and gradients.
_ABSENT = -1e9

IGNORED = -100
"""The label of a row without one."""


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Returns `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, reduced over rows.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: the factor T^2 keeps the
    gradient's size when T changes. Deviation: KL instead of cross-entropy, which differs by the teacher's entropy, a
    constant: the gradient is the same, and equal logits give 0.

    Args:
        student_logits: (B, C), any float dtype.
        teacher_logits: (B, C), any float dtype; no gradient flows into it.
        temperature: T, above 0.
        reduction: over the B rows; the C classes of a row are always summed.

    Returns:
        A scalar, float32 or float64.
    """
    student = F.log_softmax(_wide(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=-1)
    rows = (teacher.exp() * (teacher - student)).sum(dim=-1) * temperature**2  # (B)
    return _reduce(rows.sum(), rows.numel(), reduction)


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Returns the negative log likelihood of the labels, reduced over the rows whose label is not -100.

    Args:
        logits: (B, C), any float dtype.
        labels: (B), int64, in [0, C) or -100.
        reduction: over the labelled rows.

    Returns:
        A scalar, float32 or float64.
    """
    total = F.cross_entropy(_wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    return _reduce(total, (labels != IGNORED).sum(), reduction)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float, temperature: float
) -> Tensor:
    """Returns `alpha * soft_target_loss + (1 - alpha) * cross_entropy_loss`, each a mean over the rows that count.

    A row with label -100 counts for the soft targets only.

    Args:
        student_logits: (B, C), any float dtype.
        teacher_logits: (B, C), any float dtype.
        labels: (B), int64, in [0, C) or -100.
        alpha: weight of the soft targets, 0 to 1.
        temperature: T, above 0.

    Returns:
        A scalar, float32 or float64.
    """
    soft = soft_target_loss(student_logits, teacher_logits, temperature=temperature)
    return alpha * soft + (1 - alpha) * cross_entropy_loss(student_logits, labels)


def hidden_state_loss(
    student_states: Tensor, teacher_states: Tensor, mask: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Returns the squared difference of hidden states, a mean over channels, reduced over the positions that count.

    Jiao et al., "TinyBERT", arXiv:1909.10351, equation 8; where the sizes differ, `student_states` comes through a
    learned projection.

    Args:
        student_states: (B, T, H), any float dtype.
        teacher_states: (B, T, H), any float dtype; no gradient flows into it.
        mask: (B, T), 0 or False where padding; such positions may hold anything, NaN included.
        reduction: over the positions that count.

    Returns:
        A scalar, float32 or float64.
    """
    counted = mask.bool()
    difference = _wide(student_states)[counted] - _wide(teacher_states.detach())[counted]  # (N, H)
    return _reduce(difference.square().mean(dim=-1).sum(), counted.sum(), reduction)


def attention_relation_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, *, relation_heads: int, reduction: Reduction = "mean"
) -> Tensor:
    """Returns `KL(teacher's relation || student's relation)` of queries, keys or values, reduced over positions.

    Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", arXiv:2012.15828, equations 4 to 7: the
    vectors of all heads are concatenated and split into `relation_heads` of size d, and R = softmax(X X^T / sqrt(d)),
    with padding left out of rows and columns. A position's value is the mean over relation heads.

    Args:
        student: (B, T, H_student), any float dtype: one of Q, K and V, all heads side by side.
        teacher: (B, T, H_teacher), any float dtype: the same of the teacher; no gradient flows into it.
        mask: (B, T), 0 or False where padding; such positions may hold anything, NaN included. Or (B, T, T), True
            where a position (row) relates to another (column), as `decoder_pairs` gives it; a position counts where it
            relates to itself.
        relation_heads: divides H_student and H_teacher.
        reduction: over the positions that count.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: `relation_heads` does not divide both sizes.
    """
    counted = mask.bool() if mask.ndim == 2 else mask.bool().diagonal(dim1=1, dim2=2)  # (B, T)
    related = counted[:, None, :] if mask.ndim == 2 else mask.bool()  # (B, 1 or T, T)
    student_relation = _log_relation(student, counted, related, relation_heads)
    teacher_relation = _log_relation(teacher.detach(), counted, related, relation_heads)
    divergence = teacher_relation.exp() * (teacher_relation - student_relation)  # (B, A, T, T)
    counts = (counted[:, None, :, None] & related[:, None]).expand_as(divergence)
    total = divergence.masked_fill(~counts, 0.0).sum() / relation_heads
    return _reduce(total, counted.sum(), reduction)


def decoder_pairs(documents: Tensor, mask: Tensor) -> Tensor:
    """Returns which positions a decoder attends to: earlier ones and itself, in the same document.

    Args:
        documents: (B, T), any integer dtype: the number of the document that each position is of.
        mask: (B, T), 0 or False where padding: such positions relate to none.

    Returns:
        (B, T, T), bool, row by column.
    """
    same = documents[:, :, None] == documents[:, None, :]
    counted = mask.bool()
    return same & torch.ones_like(same[0]).tril() & counted[:, :, None] & counted[:, None, :]


def _log_relation(vectors: Tensor, counted: Tensor, related: Tensor, relation_heads: int) -> Tensor:
    """Returns `log softmax(X X^T / sqrt(d))` over the related columns, (B, A, T, T)."""
    batch, length, size = vectors.shape
    if size % relation_heads:
        raise ValueError(f"relation_heads: found {relation_heads}, expected a divisor of {size}.")
    clean = _wide(vectors).masked_fill(~counted[:, :, None], 0.0)  # a NaN times 0 would stay NaN
    heads = clean.view(batch, length, relation_heads, size // relation_heads).transpose(1, 2)  # (B, A, T, d)
    scores = heads @ heads.transpose(-1, -2) / math.sqrt(size // relation_heads)
    return F.log_softmax(scores.masked_fill(~related[:, None], _ABSENT), dim=-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _reduce(total: Tensor, count: Tensor | int, reduction: Reduction) -> Tensor:
    if reduction == "sum":
        return total
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
