"""Lays codes out as ONNX operators read them. Nothing is rounded: `QuantizedTensor` in, the same numbers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.exporters.graph import Site
from edgekit.models.codes import QuantizedTensor, Scheme, pack

Kernel = Callable[[Site, QuantizedTensor, ir.Value | None], ir.Value]
"""Writes the operators of a linear on its codes, with its bias, and returns the product."""

# One scale a channel is repeated for blocks of so many inputs: the fastest of MatMulNBits' sizes.
_CHANNEL_BLOCK = 128


@dataclass(frozen=True)
class NBitsMatrix:
    """A weight as com.microsoft::MatMulNBits reads it."""

    bits: int
    """Bits that a code takes."""
    block_size: int
    """Input channels of a block."""
    codes: np.ndarray
    """uint8 (out, blocks, block_size * bits / 8), the first code of a byte in its low bits."""
    scales: np.ndarray
    """float32 (out, blocks)."""
    zero_points: np.ndarray | None
    """uint8 (out, ceil(blocks * bits / 8)); None: half the range, which is where signed codes are moved to."""


def concatenate(weights: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Returns weights of one scheme and one input as one, (sum of out, in)."""
    zero_points = [weight.zero_points for weight in weights if weight.zero_points is not None]
    return QuantizedTensor(
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        zero_points=torch.cat(zero_points) if zero_points else None,
        scheme=weights[0].scheme,
    )


def nbits_matrix(weight: QuantizedTensor) -> NBitsMatrix:
    """Returns a weight for MatMulNBits.

    What the operator has no layout for becomes one that it has, and stands for the same numbers: 3-bit codes lie in 4
    bits, and one scale a channel is repeated for blocks.
    """
    columns = weight.codes.shape[1]
    bits, size = stored_bits(weight.scheme), weight.scheme.group_size or _CHANNEL_BLOCK
    middle = 2 ** (bits - 1) if weight.scheme.symmetric else 0
    codes = (weight.codes.to(torch.int16) + middle).to(torch.uint8)
    # The last group is filled up with codes that stand for zero wherever the input is padded with zeros: any code.
    codes = F.pad(codes, (0, -columns % size), value=middle).unflatten(1, (-1, size))
    scales, zeros = weight.scales, weight.zero_points
    if weight.scheme.group_size is None:
        blocks = codes.shape[1]
        scales, zeros = scales.expand(-1, blocks), None if zeros is None else zeros.expand(-1, blocks)
    return NBitsMatrix(
        bits=bits,
        block_size=size,
        codes=pack(codes, bits).numpy(),
        scales=scales.float().contiguous().numpy(),
        zero_points=None if zeros is None else pack(zeros, bits).numpy(),
    )


def stored_bits(scheme: Scheme) -> int:
    """Returns the bits that a code takes in MatMulNBits, which has 2, 4 and 8."""
    return 4 if scheme.bits == 3 else scheme.bits


def spread_scales(weight: QuantizedTensor, values: Tensor) -> np.ndarray:
    """Returns `(out, groups)` so that it broadcasts over the transposed codes `(in, out)`."""
    size = weight.scheme.group_size
    if size is not None:
        values = values.repeat_interleave(size, dim=1)[:, : weight.codes.shape[1]]
    return values.T.contiguous().numpy()
