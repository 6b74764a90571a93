"""Lays codes out as GGUF blocks of 32 weights. Nothing is rounded: `QuantizedTensor` in, the same numbers out.

| block | bytes | a weight is | takes |
|---|---|---|---|
| Q8_0 | 34: d, 32 int8 | `d * q` | 8-bit symmetric codes |
| Q4_0 | 18: d, 16 pairs | `d * (q - 8)` | 4-bit symmetric codes |
| Q4_1 | 20: d, m, 16 pairs | `d * q + m` | 4-bit codes with a zero point, `m = -zero_point * d` |

d and m are float16. The first 16 weights of a block are the low halves of its pairs, the other 16 the high halves.
A group of 64 or 128, or a whole row, becomes several blocks with one scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.errors import UnsupportedError
from edgekit.exporters.block_types import BLOCK, BlockType, block_type
from edgekit.models.quantized import QuantizedTensor, Scheme


@dataclass(frozen=True)
class Blocks:
    """A weight as GGUF stores it."""

    type: BlockType
    data: np.ndarray
    """uint8 `(out, bytes of a row)`."""


def encode(weight: QuantizedTensor) -> Blocks:
    """Returns the blocks of a weight.

    Raises:
        UnsupportedError: no block holds these codes.
    """
    rows, columns = weight.codes.shape
    kind = block_type(weight.scheme, columns)
    scales = _per_block(weight.scales.numpy(), weight.scheme, columns)
    codes = weight.codes.numpy().reshape(rows, -1, BLOCK)
    parts = [_bytes(scales)]
    if kind == "Q8_0":
        parts.append(codes.astype(np.int8).view(np.uint8))
    elif kind == "Q4_0":
        parts.append(_pairs((codes.astype(np.int16) + 8).astype(np.uint8)))
    else:
        parts += [_bytes(_minima(weight, scales)), _pairs(codes.astype(np.uint8))]
    return Blocks(kind, np.concatenate(parts, axis=2).reshape(rows, -1))


def _minima(weight: QuantizedTensor, scales: np.ndarray) -> np.ndarray:
    """Returns `-zero_point * scale` as float16 `(out, blocks)`, which must lose nothing."""
    if weight.zero_points is None:
        raise UnsupportedError("gguf: found asymmetric codes without zero points; expected one a group.")
    zeros = _per_block(weight.zero_points.numpy(), weight.scheme, weight.codes.shape[1])
    exact = -zeros.astype(np.float64) * scales.astype(np.float64)
    with np.errstate(over="ignore"):
        minima = exact.astype(np.float16)
    lost = int(np.count_nonzero(minima.astype(np.float64) != exact))
    if lost:
        raise UnsupportedError(
            f"gguf: Q4_1 stores zero_point * scale as a float16, and {lost} of {exact.size} blocks would be rounded. "
            "Expected scales of at most 7 significant bits, for which every zero point is exact; quantize with "
            "symmetric codes (Q4_0), or with such scales."
        )
    return minima


def _per_block(values: np.ndarray, scheme: Scheme, columns: int) -> np.ndarray:
    """Repeats `(out, groups)` to `(out, columns / 32)`; the last group may be short."""
    size = scheme.group_size or columns
    return np.repeat(values, -(-size // BLOCK), axis=1)[:, : columns // BLOCK]


def _bytes(values: np.ndarray) -> np.ndarray:
    """Returns float16 `(out, blocks)` as uint8 `(out, blocks, 2)`, little-endian."""
    return np.ascontiguousarray(values, dtype="<f2").view(np.uint8).reshape(*values.shape, 2)


def _pairs(codes: np.ndarray) -> np.ndarray:
    """Packs uint8 `(out, blocks, 32)` into `(out, blocks, 16)`."""
    half = BLOCK // 2
    packed: np.ndarray = codes[..., :half] | (codes[..., half:] << 4)
    return packed
