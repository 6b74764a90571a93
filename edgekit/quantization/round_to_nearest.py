"""Round to nearest: each weight becomes the code next to it, under scales that are fixed before.

    code = round(weight / scale) + zero_point, kept between code_min and code_max

How scales are chosen is in `scales.py`: for the least squared error, or by the range of the weights. 8-bit scales go by
the range, such that the largest weight of a channel (or group) gets the code +-code_max: formats that find the scale
again from the codes (LiteRT) then find this one. Not so with `reduce_range`, where the largest pair of neighbours sets
the scale and every code may be smaller. Where float16 has no such scale the channel becomes zero, which only happens
below 1e-5. It knows nothing of models or files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.errors import ModelError
from edgekit.models.codes import QuantizedTensor, Scheme
from edgekit.quantization.scales import ScaleChoice, choose_scales, group_columns

# Weights quantized at once: bounds the float64 copies, and keeps the search for scales within a processor's cache.
_CHUNK_WEIGHTS = 1 << 17


def quantize_tensor(
    weight: Tensor, scheme: Scheme, choice: ScaleChoice = "least-error", importance: Tensor | None = None
) -> QuantizedTensor:
    """Returns the codes next to `weight`, `(out, in)`, under `scheme`.

    With scales by range, the error of a weight is at most half a scale; symmetric scales below 2**-14 (subnormal in
    float16) add at most `code_max * 2**-24`. With scales for the least error, clipped weights may be further off.

    Args:
        weight: `(out, in)`, any float type.
        scheme: what it becomes.
        choice: how scales are chosen.
        importance: `(in,)`, not negative: what a column's squared error weighs in that choice.

    Raises:
        ModelError: the weights hold NaN or infinity.
        UnsupportedError: a scale exceeds float16 (a weight beyond 8 million at 8 bits).
    """
    parts = []
    for rows in split_rows(weight):
        scales, zero_points = choose_scales(rows, scheme, choice, importance)
        parts.append((round_to_codes(rows, scales, zero_points, scheme), scales, zero_points))
    codes, scales, zero_points = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedTensor(codes, scales, None if scheme.symmetric else zero_points, scheme)


def split_rows(weight: Tensor) -> tuple[Tensor, ...]:
    """Returns `weight` in parts of some rows each, after checking that it is finite.

    Raises:
        ModelError: it holds NaN or infinity.
    """
    weight = weight.detach()
    if not torch.isfinite(weight).all():
        raise ModelError("found NaN or infinity among the weights, expected finite numbers.")
    parts: tuple[Tensor, ...] = weight.split(max(1, _CHUNK_WEIGHTS // weight.shape[1]))
    return parts


def round_to_codes(rows: Tensor, scales: Tensor, zero_points: Tensor, scheme: Scheme) -> Tensor:
    """Returns the codes of weights `(out, in)` next to them, int8 or uint8, under fixed scales and zero points."""
    # float64 holds the quotient of a float32 and a float16 closely enough that no tie is made or lost.
    codes = (group_columns(rows.double(), scheme) / scales.double().unsqueeze(2)).round_()
    if not scheme.symmetric:
        codes += zero_points.double().unsqueeze(2)
    whole = codes.clamp_(scheme.code_min, scheme.code_max).to(scheme.code_dtype).flatten(1)
    return whole[:, : rows.shape[1]].contiguous()
