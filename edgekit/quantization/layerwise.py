"""Quantizes the layers of a model one after another on calibration text, by GPTQ or AWQ.

Each layer sees the outputs of the quantized layers before it, so that what those lost can be made good. Linears outside
the layers are not touched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError
from edgekit.models.codes import QuantizedTensor, Scheme
from edgekit.models.layer_run import Batch, LayerRun, start_run
from edgekit.models.quantized import weight_matrix
from edgekit.models.structure import Linear, find_linears
from edgekit.quantization.awq import AwqConfig, search_scaling
from edgekit.quantization.calibration import InputStatistics, observe
from edgekit.quantization.folding import divide_norm, divide_rows, scale_columns
from edgekit.quantization.gptq import GptqConfig, gptq_quantize
from edgekit.quantization.replacement import naming, put_codes
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.quantization.scales import ScaleChoice

# How far the output of a layer may move when scales are folded into it, relative to its largest value.
_SAME_FUNCTION = 1e-4


@dataclass(frozen=True)
class LayerwiseConfig:
    """Which algorithm, and its settings."""

    algorithm: Literal["gptq", "awq"]
    """How codes are chosen."""
    gptq: GptqConfig = field(default_factory=GptqConfig)
    """Settings of GPTQ."""
    awq: AwqConfig = field(default_factory=AwqConfig)
    """Settings of AWQ."""
    scales: ScaleChoice = "least-error"
    """How the scales of linears are chosen that no text reaches."""


def linears_in_layers(model: PreTrainedModel, schemes: dict[str, Scheme]) -> dict[str, Scheme]:
    """Returns those of `schemes` that are linears of a layer.

    Raises:
        UnsupportedError: the layers cannot be found.
    """
    inside = {linear.name for linear in find_linears(model) if linear.layer is not None}
    return {name: scheme for name, scheme in schemes.items() if name in inside}


def quantize_layers(
    model: PreTrainedModel, schemes: dict[str, Scheme], batches: Iterable[Batch], config: LayerwiseConfig
) -> Iterator[str]:
    """Replaces the linears of layers named in `schemes` by quantized ones, in place; yields the name of each layer.

    Args:
        model: in evaluation mode, float but for modules outside the layers.
        schemes: module name to scheme, linears of layers only.
        batches: calibration text.
        config: algorithm and settings.

    Raises:
        UsageError: the text holds no token.
        ModelError: weights or inputs are not finite.
        UnsupportedError: the layers are of a kind that the algorithm cannot handle.
    """
    linears = find_linears(model)
    run = start_run(model, batches)
    for index in range(len(run.stack.layers)):
        layer = _Layer(run, index, [linear for linear in linears if linear.layer == index], schemes)
        if layer.schemes:
            weights = _gptq(layer, config) if config.algorithm == "gptq" else _awq(layer, config)
            for name, weight in weights.items():
                put_codes(model, layer.full_name(name), weight)
        if index + 1 < len(run.stack.layers):
            run.advance(index)
        yield run.stack.name_of(index)


class _Layer:
    """One layer, and what its linears become; names are within the layer."""

    def __init__(self, run: LayerRun, index: int, linears: list[Linear], schemes: dict[str, Scheme]) -> None:
        self.run = run
        self.index = index
        self.prefix = run.stack.name_of(index)
        self.module = run.stack.layers[index]
        self.roles = {self._local(linear.name): linear.role for linear in linears}
        self.schemes = {name: schemes[self.full_name(name)] for name in self.roles if self.full_name(name) in schemes}

    def full_name(self, name: str) -> str:
        """Returns the name within the model."""
        return f"{self.prefix}.{name}"

    def linear(self, name: str) -> nn.Module:
        """Returns the module of a linear."""
        return self.module.get_submodule(name)

    def weight(self, name: str) -> Tensor:
        """Returns a linear's weight, `(out, in)`."""
        return weight_matrix(self.linear(name))

    def output(self) -> Tensor:
        """Returns the layer's output for the first batch, real tokens only, `(tokens, hidden_size)`."""
        _, output = next(self.run.forward(self.index))
        return output[self.run.masks[0]] if output.shape[:2] == self.run.masks[0].shape else output

    def _local(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}.")


def _gptq(layer: _Layer, config: LayerwiseConfig) -> dict[str, QuantizedTensor]:
    weights: dict[str, QuantizedTensor] = {}
    for entry in observe(layer.run, layer.index, list(layer.schemes)):
        for scheme in dict.fromkeys(layer.schemes[name] for name in entry.names):
            names = [name for name in entry.names if layer.schemes[name] == scheme]
            # Rows do not depend on one another: linears that read one input are rounded in one go.
            rows = [layer.weight(name) for name in names]
            with naming([layer.full_name(name) for name in names]):
                whole = gptq_quantize(torch.cat(rows), entry.hessian, scheme, config.gptq)
            weights |= dict(zip(names, _split(whole, [len(part) for part in rows]), strict=True))
    return weights | _unreached(layer, weights, config)


def _awq(layer: _Layer, config: LayerwiseConfig) -> dict[str, QuantizedTensor]:
    entries = observe(layer.run, layer.index, list(layer.roles))
    before = layer.output()
    importances: dict[str, Tensor] = {}
    folded = False
    for entry in entries:
        coded = [(layer.weight(name), layer.schemes[name]) for name in entry.names if name in layer.schemes]
        importance = entry.hessian.diagonal().clone()
        up = _gated_up(layer, entry)
        if coded and (entry.source is not None or up is not None):
            found = search_scaling(coded, entry.hessian, entry.magnitude / max(1, entry.tokens), config.awq)
            if entry.source is not None:
                divide_norm(layer.module.get_submodule(entry.source), found.scales, layer.full_name(entry.source))
                folded = True
            elif up is not None:
                divide_rows(layer.linear(up), found.scales)
            scale_columns([layer.linear(name) for name in entry.names], found.scales)
            importance /= found.scales.double().square()
        importances |= dict.fromkeys(entry.names, importance)
    _require_folded(layer, folded, before)
    weights: dict[str, QuantizedTensor] = {}
    for name, importance in importances.items():
        if name in layer.schemes:
            with naming([layer.full_name(name)]):
                weights[name] = quantize_tensor(
                    layer.weight(name), layer.schemes[name], config.scales, importance=importance
                )
    return weights | _unreached(layer, weights, config)


def _gated_up(layer: _Layer, entry: InputStatistics) -> str | None:
    """Returns the linear whose output reaches `entry`'s only linear times a gate; None where there is none."""
    roles = layer.roles
    if len(entry.names) != 1 or roles[entry.names[0]] != "feed_forward_down":
        return None
    gates = [name for name, role in roles.items() if role == "feed_forward_gate"]
    ups = [name for name, role in roles.items() if role == "feed_forward_up"]
    if len(gates) != 1 or len(ups) != 1:
        return None
    same = layer.weight(ups[0]).shape[0] == layer.weight(gates[0]).shape[0] == len(entry.magnitude)
    return ups[0] if same else None


def _require_folded(layer: _Layer, folded: bool, before: Tensor) -> None:
    """Refuses a layer that has no place for scales, or computes something else with them."""
    if not folded:
        raise UnsupportedError(
            f"awq: layer '{layer.prefix}' ({type(layer.module).__name__}): found no norm whose output goes into "
            "linears as it is, expected one that scales can be folded into. Use algorithm = 'gptq'."
        )
    difference = float((layer.output() - before).abs().max() / before.abs().max())
    if not difference <= _SAME_FUNCTION:
        raise UnsupportedError(
            f"awq: layer '{layer.prefix}' ({type(layer.module).__name__}): folding scales into its norms changes its "
            f"output by {difference:.2g}: something else than linears reads them. Use algorithm = 'gptq'."
        )


def _unreached(layer: _Layer, done: dict[str, QuantizedTensor], config: LayerwiseConfig) -> dict[str, QuantizedTensor]:
    """Returns codes for linears that no calibration token went through (experts never chosen): round to nearest."""
    return {
        name: quantize_tensor(layer.weight(name), scheme, config.scales)
        for name, scheme in layer.schemes.items()
        if name not in done
    }


def _split(weight: QuantizedTensor, sizes: list[int]) -> Iterator[QuantizedTensor]:
    """Yields the weights that `weight` was joined from, each in memory of its own, as saving needs it."""
    end = 0
    for size in sizes:
        start, end = end, end + size
        zeros = None if weight.zero_points is None else weight.zero_points[start:end].clone()
        yield QuantizedTensor(weight.codes[start:end].clone(), weight.scales[start:end].clone(), zeros, weight.scheme)
