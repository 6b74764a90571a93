"""Swaps linears and tables on codes for modules whose operators ExecuTorch's partitioner for XNNPACK knows.

    linear    x -> choose_qparams, quantize, dequantize;  codes -> dequantize_per_channel (or _group);  linear
    table     embedding of int8 codes, embedding of scales, their product

What the partitioner finds of the first kind becomes one linear of XNNPACK on the very codes, which rounds each row of
its input by itself: the operators that round a whole tensor are only how that is spelled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, replace_module

_LEAST_SCALE = 1.1920928955078125e-07
"""Keeps an input of zeros from having no scale (2**-23, torch's own)."""


class CodedLinear(nn.Module):
    """A linear layer `(..., in) -> (..., out)` that is written as XNNPACK's kernels for codes and rounded inputs."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantizedLinear) -> None:
        """Takes codes (out, in) int8, scales (out,) or (out, groups) float32 and the bias of `linear`."""
        super().__init__()
        weight = linear.quantized_weight()
        self.group_size = linear.scheme.group_size
        self.lowest, self.highest = (-128, 127) if linear.scheme.bits == 8 else (-8, 7)
        scales = weight.scales.float() if self.group_size else weight.scales.float().reshape(-1)
        self.register_buffer("codes", weight.codes.contiguous())
        self.register_buffer("scales", scales.contiguous())
        self.register_buffer("zero_points", torch.zeros(scales.shape, dtype=torch.int64))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.float())

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the product with what the codes stand for; the input is rounded to 8 bits."""
        operators, limits = torch.ops.quantized_decomposed, (-128, 127)
        rounding = operators.choose_qparams.tensor(inputs, *limits, _LEAST_SCALE, torch.int8)
        rounded = operators.quantize_per_tensor.tensor(inputs, *rounding, *limits, torch.int8)
        decoded = operators.dequantize_per_tensor.tensor(rounded, *rounding, *limits, torch.int8)
        return F.linear(decoded, self._decode(), self.bias)

    def _decode(self) -> Tensor:
        operators, limits = torch.ops.quantized_decomposed, (self.lowest, self.highest)
        weight = (self.codes, self.scales, self.zero_points)
        decoded: Tensor
        if self.group_size is None:
            decoded = operators.dequantize_per_channel(*weight, 0, *limits, torch.int8)
        else:
            decoded = operators.dequantize_per_channel_group(
                *weight, *limits, torch.int8, self.group_size, torch.float32
            )
        return decoded


class CodedTable(nn.Module):
    """An embedding table `(...) int64 -> (..., columns) float32` of int8 codes with one scale a row."""

    codes: Tensor
    scales: Tensor
    embed_scale: Tensor | None

    def __init__(self, table: QuantizedEmbedding) -> None:
        """Takes codes (rows, columns) int8 and scales (rows, 1) float32 of `table`."""
        super().__init__()
        weight = table.quantized_weight()
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self.register_buffer("codes", weight.codes.contiguous())
        self.register_buffer("scales", weight.scales.float().contiguous())
        self.register_buffer("embed_scale", table.embed_scale)

    @property
    def weight(self) -> Tensor:
        """The table as floats, for models that use it whole."""
        return self.codes.float() * self.scales

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the rows of `ids`; only they are decoded."""
        rows = F.embedding(ids, self.codes).float() * F.embedding(ids, self.scales)
        return rows if self.embed_scale is None else rows * self.embed_scale


def lower_codes(network: nn.Module) -> list[str]:
    """Swaps every linear and table on codes of `network` in place; returns the names of the linears."""
    # Defines the operators that `CodedLinear` calls.
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    names = []
    for name, module in list(network.named_modules()):
        if isinstance(module, QuantizedLinear):
            names.append(name)
            replace_module(network, module, CodedLinear(module))
        elif isinstance(module, QuantizedEmbedding):
            replace_module(network, module, CodedTable(module))
    return names
