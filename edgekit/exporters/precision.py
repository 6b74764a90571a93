"""Which floats a model computes with when it is exported: the codes as they are, or floats in their place.

`float16` rounds weight matrices to float16 values before anything is traced; the file stores them in two bytes and the
runtime widens them when it loads it, so torch with the rounded weights is an exact reference.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgekit.errors import ModelError, UnsupportedError
from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedModule, replace_module

Precision = Literal["as-is", "float32", "float16"]


def require_finite(network: nn.Module, where: str) -> None:
    """Refuses weights that are no numbers, one pass over each tensor without a copy; `where` names the model.

    Raises:
        ModelError: a stored float tensor holds NaN or infinity.
    """
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = torch.aminmax(tensor)  # NaN goes through, and infinity is an end
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"{where}: tensor '{name}': found NaN or infinity, expected finite numbers: every answer would be "
                "NaN. Train the model again, or import one whose weights are whole."
            )


def apply_precision(network: nn.Module, precision: Precision) -> None:
    """Replaces codes by the floats that they stand for, and rounds weight matrices, as `precision` asks; in place.

    Raises:
        UnsupportedError: a weight exceeds float16.
    """
    if precision == "as-is":
        return
    weights: dict[int, nn.Parameter] = {}
    for module in list(network.modules()):
        if isinstance(module, QuantizedModule):
            floats = _float_module(module)
            # A tied table and head stay one.
            floats.weight = weights.setdefault(module.weight_codes.data_ptr(), cast("nn.Parameter", floats.weight))
            replace_module(network, module, floats)
    if precision == "float16":
        _round_matrices(network)


def store_half(graph: ir.Graph) -> None:
    """Stores matrices whose values are all float16 values in two bytes, followed by a Cast, in place.

    Runtimes fold the Cast when they load the file. Nothing is rounded.
    """
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        stored = ir.tensor(half, name=f"{name}.float16")
        source = ir.Value(
            name=stored.name, shape=ir.Shape(half.shape), type=ir.TensorType(stored.dtype), const_value=stored
        )
        cast = ir.node("Cast", [source], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.widened")
        widened = cast.outputs[0]
        widened.name, widened.shape, widened.type = f"{name}.widened", value.shape, value.type
        value.replace_all_uses_with(widened)
        del graph.initializers[name]
        graph.register_initializer(source)
        graph.insert_before(graph[0], cast)


class ScaledEmbedding(nn.Embedding):
    """A table whose rows are multiplied by `embed_scale` when they are looked up, as Gemma's are."""

    embed_scale: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the scaled rows of the ids `input`."""
        return super().forward(input) * self.embed_scale


def _float_module(module: QuantizedModule) -> nn.Linear | nn.Embedding:
    floats: nn.Linear | nn.Embedding
    weight = module.quantized_weight().dequantize()
    if isinstance(module, QuantizedLinear):
        floats = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        if module.bias is not None:
            floats.bias.data = module.bias.detach().clone()
    elif isinstance(module, QuantizedEmbedding):
        scaled = module.embed_scale is not None
        kind = ScaledEmbedding if scaled else nn.Embedding
        floats = kind(module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx)
        if scaled:
            floats.register_buffer("embed_scale", module.embed_scale, persistent=False)
    else:
        raise UnsupportedError(f"found {type(module).__name__}, expected a quantized linear or embedding.")
    floats.weight.data = weight
    return floats.requires_grad_(False)


def _round_matrices(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            continue
        half = parameter.data.half()
        if not torch.isfinite(half).all():
            raise UnsupportedError(
                f"'{name}': found a weight of {parameter.abs().max():.3g}, which exceeds float16. Export float32."
            )
        parameter.data = half.to(parameter.dtype)
