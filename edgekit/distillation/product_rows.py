"""From the products of a head to their gradients: logits, losses and back, a few tokens at once.

Either in place, operation by operation, as a processor's cache likes it, or compiled into a few kernels, which on a GPU
read each product a few times instead of fifty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from edgekit.distillation.divergences import Divergence
from edgekit.distillation.token_rows import Buffers, RowLosses, RowTargets, RowWeights, lose
from edgekit.distillation.vocabulary_head import VocabularyHead


@dataclass(frozen=True)
class Comparison:
    """What makes logits of products, and losses of logits; neither head's weight is used."""

    student: VocabularyHead
    teacher: VocabularyHead | None
    """None where the teacher's products are not there."""
    divergence: Divergence


def lose_products(
    products: Tensor, targets: RowTargets, weights: RowWeights, comparison: Comparison, buffers: Buffers
) -> RowLosses:
    """Returns the losses of n rows and overwrites `products`, (n, V), with the gradient of their weighted sum.

    The teacher in `targets` is its products, which are overwritten too, where there is a head for it.
    """
    if isinstance(targets.teacher, Tensor) and comparison.teacher is not None:
        _make_logits(targets.teacher, comparison.teacher)
    _make_logits(products, comparison.student)
    slope = None
    if comparison.student.softcap is not None:  # d tanh(x) = 1 - tanh(x)^2
        slope = buffers.take("slope", len(products), products.dtype)
        torch.div(products, comparison.student.softcap, out=slope).square_().neg_().add_(1)
    found = lose(products, targets, weights, comparison.divergence, buffers)
    if slope is not None:
        products.mul_(slope)
    if comparison.student.scale != 1:
        products.mul_(comparison.student.scale)
    return found


def compiled_gradient(
    products: Tensor, targets: RowTargets, weights: RowWeights, comparison: Comparison
) -> tuple[Tensor, RowLosses]:
    """Returns the gradient of n rows, (n, V), in the dtype of `products`, and their losses, in that of `weights`.

    The same as `lose_products` up to the rounding of sums; the first call of each shape compiles, for seconds.
    """
    torch._dynamo.maybe_mark_dynamic(products, 0)  # the last chunk of a step is smaller
    gradient, soft, hard = _compiled()(products, targets, weights, comparison)
    return gradient, RowLosses(soft, hard)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(_gradient)


def _gradient(
    products: Tensor, targets: RowTargets, weights: RowWeights, comparison: Comparison
) -> tuple[Tensor, Tensor, Tensor]:
    wide = weights.divergence.dtype
    if isinstance(targets.teacher, Tensor):
        targets = RowTargets(targets.teacher.to(wide, copy=True), targets.labels)
    logits = products.to(wide, copy=True)
    found = lose_products(logits, targets, weights, comparison, _Fresh(products))
    return logits.to(products.dtype), found.divergence, found.cross_entropy


class _Fresh:
    """Gives new memory each time: what is compiled needs none of it."""

    def __init__(self, like: Tensor) -> None:
        self.like = like

    def take(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Returns (rows, V), holding anything."""
        return torch.empty_like(self.like, dtype=dtype)


def _make_logits(products: Tensor, head: VocabularyHead) -> None:
    """Makes logits of products, (n, V), in place."""
    if head.bias is not None:
        products.add_(head.bias.detach())
    if head.scale != 1:
        products.mul_(head.scale)
    if head.softcap is not None:
        products.div_(head.softcap).tanh_().mul_(head.softcap)
