"""Rounds activations to 8 bits as the deployed kernels do, and multiplies codes exactly. It knows no modules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# A product of two codes is at most 255 * 255, so this many of them add up exactly in float32 (24 bits).
_EXACT_TERMS = 256


def quantize_dynamically(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes (float32 integers, 0 to 255), scale and zero point, as ONNX DynamicQuantizeLinear defines them.

    The range covers the whole tensor and zero, so every row of a batch shares it, padding included.
    """
    low, high = inputs.amin().clamp(max=0), inputs.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((-low / scale).clamp(0, 255))
    codes = (torch.round(inputs / scale) + zero_point).clamp(0, 255)
    return codes, scale, zero_point


def round_blocks(inputs: Tensor, block_size: int) -> Tensor:
    """Returns `inputs` rounded to 8 bits, one scale for each `block_size` neighbours: `code * (absmax / 127)`."""
    columns = inputs.shape[-1]
    blocks = F.pad(inputs, (0, -columns % block_size)).unflatten(-1, (-1, block_size))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    rounded: Tensor = (torch.round(blocks * inverse) * scale).flatten(-2)[..., :columns]
    return rounded


def round_rows(inputs: Tensor) -> Tensor:
    """Returns `inputs` rounded to 8 bits, one scale and zero point for each row of `(..., in)`, as XNNPACK rounds them.

    The range of a row covers zero: `(code - zero_point) * scale` with `scale = (max - min) / 255`.
    """
    low, high = inputs.amin(dim=-1, keepdim=True).clamp(max=0), inputs.amax(dim=-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale)
    codes = (torch.round(inputs / scale) + zero_point).clamp(0, 255)
    return (codes - zero_point) * scale


def multiply_exactly(codes: Tensor, weights: Tensor) -> Tensor:
    """Returns `codes @ weights.T` for float32 integers of at most 8 bits and a sign, rounded to float32 only once.

    Every partial sum of `_EXACT_TERMS` products is an integer below 2**24: float32 holds it, in any order.
    """
    parts = zip(codes.split(_EXACT_TERMS, dim=-1), weights.split(_EXACT_TERMS, dim=-1), strict=True)
    total = torch.zeros(*codes.shape[:-1], weights.shape[0], dtype=torch.float64, device=codes.device)
    for left, right in parts:
        total += F.linear(left, right)
    return total.float()
