"""Lets the layers that are kept make up for what was dropped: least squares on calibration text, without training.

The student's layers run one after another, each on what the refitted ones before it give. The last linear of a layer's
feed-forward block, which reads activations a_t of token t and writes W a_t into the hidden states, becomes W + D with

    D = argmin  sum_t w_t |r_t - D a_t|^2 + ridge mean(diag(G)) |D|^2,     G = sum_t w_t a_t a_t^T,

r_t being what the layer's output lacks of the larger model's hidden states before the next layer that was kept, and
w_t the inverse of their mean square: errors count relative to what the next norm divides by. Where a norm ends the
layer (BERT), r_t is taken before it, with the token's own mean and deviation left as they are. Reconstructing a layer's
output by least squares is what SparseGPT (https://arxiv.org/abs/2301.00774) does for single weights; ReplaceMe
(https://arxiv.org/abs/2505.02819) does it for dropped blocks with one linear map of a block's output, where D sees the
wider activations before it, and every layer that is kept takes part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError
from edgekit.models.layer_run import Batch, LayerRun, start_run
from edgekit.models.quantized import weight_matrix
from edgekit.models.structure import Linear, find_layers, find_linears

# A norm's scale below this share of its mean counts as this share: the error is divided by it.
_LEAST_SCALE = 0.05


@dataclass(frozen=True)
class LayerFit:
    """How far a layer's output is from what the larger model has there, as a share of that, on calibration text."""

    before: float
    """Mean over tokens of |error|^2 / |larger model's|^2, the layers before it being refitted already."""
    after: float


@dataclass(frozen=True)
class _Layer:
    """A layer of the student, and where it is to lead."""

    index: int
    linear: Linear
    run: LayerRun
    targets: list[Tensor]
    """The larger model's hidden states, (B, T, hidden_size) a batch."""

    @property
    def module(self) -> nn.Module:
        """The layer itself."""
        return self.run.stack.layers[self.index]


def refit_layers(
    model: PreTrainedModel, student: PreTrainedModel, kept: Sequence[int], batches: Iterable[Batch], ridge: float
) -> Iterator[LayerFit]:
    """Changes the feed-forward output of each of the student's layers in place; yields how well it fits.

    A layer that does not come closer so is left as it was.

    Args:
        model: what `student` was cut from, in evaluation mode.
        student: with the layers `kept`, whose feed-forward blocks may be narrower.
        kept: indices in `model`, ascending.
        batches: calibration text in the tokens of `model`.
        ridge: 0 or more; how much changes of weights are held back.

    Raises:
        UsageError: the text holds no token.
        UnsupportedError: layers share their weights, or one has no single linear that ends its feed-forward block.
    """
    larger = start_run(model, batches)
    linears = _last_linears(student)
    smaller = LayerRun(find_layers(student), list(larger.hidden), larger.masks, [larger.calls[index] for index in kept])
    passed = 0
    for index, end in enumerate([*kept[1:], len(larger.stack.layers)]):
        for between in range(passed, end):
            larger.advance(between)
        passed = end
        yield _refit(_Layer(index, linears[index], smaller, larger.hidden), ridge)


def _refit(layer: _Layer, ridge: float) -> LayerFit:
    """Refits one layer, and leaves the run behind it."""
    sums = _Sums(layer)
    before, start = sums.error, list(layer.run.hidden)
    module = layer.linear.module
    old = {name: value.detach().clone() for name, value in module.named_parameters(recurse=False)}
    _add(module, sums.solve(ridge))
    layer.run.advance(layer.index)
    after = _error(layer)
    if not after < before:
        module.load_state_dict(old, strict=False)
        layer.run.hidden[:] = start
        layer.run.advance(layer.index)
        after = before
    return LayerFit(before=before, after=after)


class _Sums:
    """The normal equations of a layer's linear over all tokens but padding, in float64."""

    def __init__(self, layer: _Layer) -> None:
        module = layer.linear.module
        outputs, inputs = weight_matrix(module).shape
        self._has_bias = getattr(module, "bias", None) is not None
        size = inputs + self._has_bias
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._moments = torch.zeros(size, outputs, dtype=torch.float64)
        total, tokens = 0.0, 0
        for activations, residual, weights, error in self._tokens(layer):
            if self._has_bias:
                activations = torch.cat([activations, torch.ones(len(activations), 1)], dim=1)
            weighted = activations * weights
            self._gram += weighted.T @ activations
            self._moments += weighted.T @ residual
            total, tokens = total + float(error.sum()), tokens + len(error)
        self.error = total / tokens

    def solve(self, ridge: float) -> Tensor:
        """Returns what to add to the weight, and below it to the bias: (in, out) or (in + 1, out), float32."""
        scale = self._gram.diagonal().mean()
        held = self._gram + (ridge * scale + torch.finfo(torch.float64).eps) * torch.eye(len(self._gram)).double()
        change: Tensor = torch.linalg.solve(held, self._moments).float()
        return change

    @staticmethod
    def _tokens(layer: _Layer) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yields for each batch's real tokens: activations, what is lacking, weights (N, 1), relative errors (N)."""
        seen: dict[str, Tensor] = {}
        normed: list[tuple[nn.Module, Tensor, Tensor]] = []

        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen["activations"] = args[0]

        def wrote(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            normed.append((module, args[0], output))

        norms = [part for part in layer.module.modules() if isinstance(part, nn.LayerNorm)]
        handles = [layer.linear.module.register_forward_pre_hook(read)]
        handles += [norm.register_forward_hook(wrote) for norm in norms]
        try:
            for batch, output in layer.run.forward(layer.index):
                mask, target = layer.run.masks[batch], layer.targets[batch]
                lacking = (target - output)[mask].float()
                weights = 1 / target[mask].float().square().mean(dim=1, keepdim=True)
                error = lacking.square().mean(dim=1) * weights[:, 0]
                last = next((entry for entry in normed if entry[2] is output), None)
                if last is not None:
                    lacking, weights = _before_norm(last[0], last[1][mask].float(), lacking)
                normed.clear()
                activations = seen["activations"].reshape(*mask.shape, -1)  # OPT has tokens of all rows in one
                yield activations[mask].float(), lacking, weights, error
        finally:
            for handle in handles:
                handle.remove()


def _before_norm(norm: nn.Module, states: Tensor, lacking: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what the input of a LayerNorm lacks, (N, hidden_size), and the tokens' weights, (N, 1)."""
    deviation = states.std(dim=1, keepdim=True, correction=0)
    scale: Any = norm.weight
    if scale is not None:
        least = _LEAST_SCALE * scale.detach().abs().mean()
        lacking = lacking / torch.where(scale.abs() < least, least.copysign(scale), scale).detach()
    return lacking * deviation, 1 / deviation.square()


def _error(layer: _Layer) -> float:
    """Returns the relative error of the hidden states that the run is at."""
    total, tokens = 0.0, 0
    for found, target, mask in zip(layer.run.hidden, layer.targets, layer.run.masks, strict=True):
        difference = (target - found)[mask].float().square().mean(dim=1)
        total += float((difference / target[mask].float().square().mean(dim=1)).sum())
        tokens += len(difference)
    return total / tokens


def _last_linears(student: PreTrainedModel) -> list[Linear]:
    linears = find_linears(student)
    found = []
    for index in range(len(find_layers(student).layers)):
        own = [linear for linear in linears if linear.layer == index and linear.role == "feed_forward_down"]
        if len(own) != 1:
            raise UnsupportedError(
                f"refit: layer {index} of model type '{student.config.model_type}' has {len(own)} linears that end a "
                "feed-forward block, expected one. Leave refit out."
            )
        found += own
    return found


def _add(module: nn.Module, change: Tensor) -> None:
    """Adds (in, out) to a linear's weight, and a further row to its bias."""
    bias: Any = getattr(module, "bias", None)
    with torch.no_grad():
        weight_matrix(module).add_(change.T if bias is None else change[:-1].T)
        if bias is not None:
            bias.add_(change[-1])
