"""The autograd function that goes from hidden states to losses chunk by chunk, its gradient computed on the way.

In the forward pass each chunk of tokens gets its logits, its losses, the gradient of the logits in their place, and
from that its part of the gradients of hidden states and head. So two buffers of (chunk, V) are all that there is,
whatever the number of tokens, and the backward pass only hands out what is there. The price: how the losses are
weighted against each other must be known in the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgekit.distillation.divergences import Divergence
from edgekit.distillation.product_rows import Comparison, compiled_gradient, lose_products
from edgekit.distillation.token_rows import RowBuffers, RowLosses, RowTargets, RowWeights
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_targets import SampledTargets, Teacher, TeacherStates, TopKTargets

# Bytes of one buffer of rows: a few of them fit a core's share of the cache.
_CACHED_BYTES = 1 << 21
# Rows of the weight whose gradient is multiplied in bf16 at once, before it is added in float32.
_PRODUCT_ROWS = 8192


@dataclass(frozen=True)
class Work:
    """What the losses of N tokens are made of, besides the tensors that get gradients."""

    head: VocabularyHead
    teacher: Teacher | None
    labels: Tensor | None
    """(N), int64, -100 where there is none."""
    divergence_weights: Tensor
    """(N), in the dtype of the losses."""
    cross_entropy_weights: Tensor
    """(N), 0 where there is no label."""
    divergence: Divergence
    coefficients: tuple[float, float]
    """What the sums of divergence and cross-entropy are multiplied by in the gradient."""
    chunk_tokens: int
    needs_gradient: bool
    buffers: RowBuffers
    """Of V columns, used again from call to call: memory that is new at every step costs as much as the losses."""
    compiled: bool = False
    """Losses and gradients are compiled into a few kernels."""


class ChunkedLoss(torch.autograd.Function):
    """Hidden states (N, H), weight (V, H) and bias (V) to two weighted sums and two lists of losses, one a token."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (sum of divergence, sum of cross-entropy, divergence (N), cross-entropy (N))."""
        needs = tuple(bool(need) and work.needs_gradient for need in ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            run = _Run(hidden.detach(), weight.detach(), None if bias is None else bias.detach(), work, needs)
            for start in range(0, len(hidden), work.chunk_tokens):
                run.take_chunk(slice(start, min(start + work.chunk_tokens, len(hidden))))
        ctx.gradients, ctx.coefficients, ctx.given = run.gradients(), work.coefficients, False
        soft, hard = run.losses
        ctx.mark_non_differentiable(soft, hard)
        return (soft * work.divergence_weights).sum(), (hard * work.cross_entropy_weights).sum(), soft, hard

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Returns the gradients that the forward pass made, times how much the sums' coefficients were scaled since.

        Raises:
            RuntimeError: the sums were weighted otherwise than announced, or backward is called again.
        """
        factor = _common_factor((float(outputs[0]), float(outputs[1])), ctx.coefficients)
        if factor != 1:
            hidden, weight, bias = (None if found is None else found * factor for found in ctx.gradients)
            return hidden, weight, bias, None
        if ctx.given:
            raise RuntimeError("the gradients of the chunked loss were already handed out; compute the loss again.")
        ctx.given = True
        hidden, weight, bias = ctx.gradients
        ctx.gradients = (None, None, None)  # so that autograd need not copy what it keeps
        return hidden, weight, bias, None


class _Run:
    """The buffers, losses and gradients of one forward pass."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work, needs: tuple[bool, ...]
    ) -> None:
        self.hidden, self.head_dtype, self.work = hidden, weight.dtype, work
        self.head = replace(work.head, weight=weight.to(hidden.dtype), bias=bias)
        self.teacher = work.teacher
        if isinstance(self.teacher, TeacherStates):
            states, head = self.teacher.hidden.detach(), self.teacher.head
            self.teacher = TeacherStates(states, replace(head, weight=head.weight.detach().to(states.dtype)))
        teacher_head = self.teacher.head if isinstance(self.teacher, TeacherStates) else None
        self.comparison = Comparison(self.head, teacher_head, work.divergence)
        self.wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        (tokens, size), vocabulary = hidden.shape, len(weight)
        self.buffers = work.buffers
        self.rows = _rows_at_once(vocabulary, self.wide, hidden.device) or max(tokens, 1)
        self.losses = tuple(torch.zeros(tokens, dtype=self.wide, device=hidden.device) for _ in range(2))
        self.hidden_gradient = torch.empty_like(hidden) if needs[0] else None
        self.weight_gradient = self._zeros(vocabulary, size) if needs[1] else None
        self.bias_gradient = self._zeros(vocabulary) if needs[2] else None

    def take_chunk(self, chunk: slice) -> None:
        """Adds the losses and gradients of the tokens `chunk`."""
        hidden = self.hidden[chunk]
        gradient = self._compiled(hidden, chunk) if self.work.compiled else self._in_place(hidden, chunk)
        self._add_gradients(hidden, gradient, chunk)

    def _compiled(self, hidden: Tensor, chunk: slice) -> Tensor:
        """Returns the gradient of the products of a chunk, (n, V), in their dtype."""
        products = torch.mm(hidden, self.head.weight.t())
        teacher: Tensor | TopKTargets | SampledTargets | None = self._known(chunk)
        if isinstance(self.teacher, TeacherStates):
            teacher = torch.mm(self.teacher.hidden[chunk], self.teacher.head.weight.t())
        gradient, losses = compiled_gradient(
            products, self._targets(teacher, chunk), self._weights(chunk), self.comparison
        )
        self._keep(losses, chunk)
        return gradient

    def _in_place(self, hidden: Tensor, chunk: slice) -> Tensor:
        """Returns the same in the dtype of the losses, in a buffer, made of a few rows at a time."""
        products = self._product("student", hidden, self.head.weight)
        teacher_products = None
        if isinstance(self.teacher, TeacherStates):
            teacher_products = self._product("teacher", self.teacher.hidden[chunk], self.teacher.head.weight)
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, min(start + self.rows, len(hidden)))
            tokens = slice(chunk.start + rows.start, chunk.start + rows.stop)
            teacher = self._known(tokens) if teacher_products is None else teacher_products[rows]
            targets, weights = self._targets(teacher, tokens), self._weights(tokens)
            losses = lose_products(products[rows], targets, weights, self.comparison, self.buffers)
            self._keep(losses, tokens)
        return products

    def _known(self, tokens: slice) -> TopKTargets | SampledTargets | None:
        """Returns what was kept of the teacher; None where it runs beside the student, or there is none."""
        return self.teacher.rows(tokens) if isinstance(self.teacher, TopKTargets | SampledTargets) else None

    def _targets(self, teacher: Tensor | TopKTargets | SampledTargets | None, tokens: slice) -> RowTargets:
        return RowTargets(teacher, None if self.work.labels is None else self.work.labels[tokens])

    def _weights(self, tokens: slice) -> RowWeights:
        work = self.work
        return RowWeights(
            work.divergence_weights[tokens, None] * work.coefficients[0],
            work.cross_entropy_weights[tokens, None] * work.coefficients[1],
        )

    def _keep(self, found: RowLosses, tokens: slice) -> None:
        self.losses[0][tokens], self.losses[1][tokens] = found.divergence, found.cross_entropy

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of hidden states, weight and bias, each in the dtype of its tensor."""
        weight, bias = self.weight_gradient, self.bias_gradient
        return (
            self.hidden_gradient,
            None if weight is None else weight.to(self.head_dtype),
            None if bias is None or self.head.bias is None else bias.to(self.head.bias.dtype),
        )

    def _product(self, name: str, hidden: Tensor, weight: Tensor) -> Tensor:
        """Returns `hidden @ weight^T`, (n, V), multiplied in their dtype and widened, in the buffer `name`."""
        wide = self.buffers.take(name, len(hidden), self.wide)
        if hidden.dtype == self.wide:
            return torch.mm(hidden, weight.t(), out=wide)
        narrow = self.buffers.take("narrow", len(hidden), hidden.dtype)
        return wide.copy_(torch.mm(hidden, weight.t(), out=narrow))

    def _add_gradients(self, hidden: Tensor, gradient: Tensor, chunk: slice) -> None:
        """Adds what the gradient of a chunk's products, (n, V), means for hidden states, weight and bias."""
        if self.bias_gradient is not None:
            self.bias_gradient.add_(gradient.sum(dim=0, dtype=self.wide))
        if hidden.dtype != gradient.dtype:
            gradient = self.buffers.take("narrow", len(hidden), hidden.dtype).copy_(gradient)
        if self.hidden_gradient is not None:
            torch.mm(gradient, self.head.weight, out=self.hidden_gradient[chunk])
        if self.weight_gradient is None:
            return
        if hidden.dtype == self.wide:
            self.weight_gradient.addmm_(gradient.t(), hidden)
        elif hidden.device.type != "cpu":
            self.weight_gradient.add_(torch.mm(gradient.t(), hidden))
        else:  # a sum over chunks in bf16 would lose what later chunks add
            for start in range(0, len(self.head.weight), _PRODUCT_ROWS):
                part = gradient[:, start : start + _PRODUCT_ROWS].t()
                narrow, wide = (found[: len(part)] for found in self._parts(hidden))
                wide.copy_(torch.mm(part, hidden, out=narrow))
                self.weight_gradient[start : start + len(part)].add_(wide)

    def _parts(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two buffers for a part of the weight's gradient, (`_PRODUCT_ROWS`, H): as multiplied, and wide."""
        size, rows = hidden.shape[1], -(-_PRODUCT_ROWS * hidden.shape[1] // self.buffers.vocabulary)
        flat = (self.buffers.take("part", rows, dtype).view(-1) for dtype in (hidden.dtype, self.wide))
        narrow, wide = (found[: _PRODUCT_ROWS * size].view(_PRODUCT_ROWS, size) for found in flat)
        return narrow, wide

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.wide, device=self.hidden.device)


def _rows_at_once(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int | None:
    """Returns how many rows go through all passes together: on a processor as many as its cache holds."""
    if device.type != "cpu":
        return None
    return max(1, _CACHED_BYTES // (vocabulary * dtype.itemsize))


def _common_factor(given: tuple[float, float], announced: tuple[float, float]) -> float:
    """Returns f with given = f * announced, exactly 1 where only the coefficients' rounding to float32 is between them.

    Raises:
        RuntimeError: there is none.
    """
    largest = max(range(2), key=lambda index: abs(announced[index]))
    factor = given[largest] / announced[largest] if announced[largest] else 0.0
    for found, expected in zip(given, announced, strict=True):
        if abs(found - factor * expected) > 1e-5 * max(abs(found), abs(factor * expected)):
            raise RuntimeError(
                f"chunked loss: the gradients of the sums of divergence and cross-entropy are {given[0]:.6g} and "
                f"{given[1]:.6g}, expected a multiple of the coefficients {announced[0]:.6g} and {announced[1]:.6g} "
                "that were given to vocabulary_losses. Multiply the sums by those coefficients and no others."
            )
    return 1.0 if abs(factor - 1) < 1e-6 else factor
