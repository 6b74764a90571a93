"""Lays codes out as ONNX operators read them. Nothing is rounded: `QuantizedTensor` in, the same numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.models.quantized import QuantizedTensor


@dataclass(frozen=True)
class NBitsMatrix:
    """A weight as com.microsoft::MatMulNBits reads it."""

    codes: np.ndarray
    """uint8 (out, groups, group_size * bits / 8), the first code of a byte in its low bits."""
    scales: np.ndarray
    """float32 (out, groups)."""
    zero_points: np.ndarray | None
    """uint8 (out, ceil(groups * bits / 8)); None: half the range, which is where signed codes are moved to."""


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
    """Returns a group-wise weight for MatMulNBits."""
    bits, size = weight.scheme.bits, weight.scheme.group_size or weight.codes.shape[1]
    middle = 2 ** (bits - 1) if weight.scheme.symmetric else 0
    codes = (weight.codes.to(torch.int16) + middle).to(torch.uint8)
    # The last group is filled up with codes that stand for zero wherever the input is padded with zeros: any code.
    codes = F.pad(codes, (0, -codes.shape[1] % size), value=middle).unflatten(1, (-1, size))
    zeros = weight.zero_points
    return NBitsMatrix(
        codes=_pack(codes, bits).numpy(),
        scales=weight.scales.float().contiguous().numpy(),
        zero_points=None if zeros is None else _pack(zeros, bits).numpy(),
    )


def spread_scales(weight: QuantizedTensor, values: Tensor) -> np.ndarray:
    """Returns `(out, groups)` so that it broadcasts over the transposed codes `(in, out)`."""
    size = weight.scheme.group_size
    if size is not None:
        values = values.repeat_interleave(size, dim=1)[:, : weight.codes.shape[1]]
    return values.T.contiguous().numpy()


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Packs 4-bit codes two a byte along the last dimension, the first one low."""
    if bits == 8:
        return codes.contiguous()
    pairs = F.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2))
    packed: Tensor = (pairs[..., 0] | (pairs[..., 1] << 4)).contiguous()
    return packed
