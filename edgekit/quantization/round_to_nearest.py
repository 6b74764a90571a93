"""Round to nearest: each weight becomes the code next to it, under a scale that float16 holds exactly.

    symmetric     scale = absmax / code_max                code = round(weight / scale)
    asymmetric    scale = (max - min) / code_max           code = round(weight / scale) + zero_point
                  zero_point = round(-min / scale)         (min and max include zero)

The scale is rounded to float16 before any code is chosen, so that every format holds it exactly. For symmetric codes
it is rounded such that the largest weight of a channel (or group) gets the code +-code_max: formats that find the
scale again from the codes (LiteRT) then find this one. Not so with `reduce_range`, where the largest pair of neighbours
sets the scale and every code may be smaller. Where float16 has no such scale the channel becomes zero, which only
happens below 1e-5. It knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import ModelError, UnsupportedError
from edgekit.models.quantized import QuantizedTensor, Scheme

# Rows quantized at once: bounds the float64 copies for large embedding tables.
_CHUNK_ROWS = 4096


def quantize_tensor(weight: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Returns the codes next to `weight`, `(out, in)`, under `scheme`.

    The error of a weight is at most half a scale; symmetric scales below 2**-14 (subnormal in float16) add at most
    `code_max * 2**-24`.

    Raises:
        ModelError: the weights hold NaN or infinity.
        UnsupportedError: a scale exceeds float16 (a weight beyond 8 million at 8 bits).
    """
    parts = [_quantize_rows(rows, scheme) for rows in _chunks(weight.detach())]
    codes, scales, zero_points = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedTensor(codes, scales, None if scheme.symmetric else zero_points, scheme)


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    for rows in weight.split(_CHUNK_ROWS):
        if not torch.isfinite(rows).all():
            raise ModelError("found NaN or infinity among the weights, expected finite numbers.")
        yield rows.double()


def _quantize_rows(rows: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes `(out, in)`, scales and zero points `(out, groups)` of float64 rows `(out, in)`."""
    columns = rows.shape[1]
    size = scheme.group_size or columns
    groups = F.pad(rows, (0, -columns % size)).unflatten(1, (-1, size))  # (out, groups, size)
    if scheme.symmetric:
        scales, zero_points = _symmetric_scales(groups, scheme), torch.zeros(groups.shape[:2], dtype=torch.float64)
    else:
        scales, zero_points = _asymmetric_scales(groups, scheme)
    if not torch.isfinite(scales).all():
        raise UnsupportedError(f"found a weight of {rows.abs().max():.3g}, whose scale exceeds float16.")
    # A scale of zero means a channel of zeros; one keeps every reader from dividing by zero.
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    # float64 holds the quotient of a float32 and a float16 closely enough that no tie is made or lost.
    codes = torch.round(groups / scales.double().unsqueeze(2)) + zero_points.unsqueeze(2)
    codes = codes.clamp(scheme.code_min, scheme.code_max)
    dtype = torch.int8 if scheme.symmetric else torch.uint8
    return codes.flatten(1)[:, :columns].to(dtype), scales, zero_points.to(torch.uint8)


def _symmetric_scales(groups: Tensor, scheme: Scheme) -> Tensor:
    """Returns float16 scales `(out, groups)` that give the largest weight the code +-code_max."""
    if scheme.reduce_range:
        return _round_up(_largest_pair(groups) / scheme.code_max)
    largest = groups.abs().amax(dim=2)
    scales = (largest.float() / scheme.code_max).half()
    # Among float16's subnormals, or by a tie, the nearest scale can be too large for that.
    too_large = largest <= (scheme.code_max - 0.5) * scales.double()
    return torch.where(too_large & (scales > 0), _neighbour(scales, -1), scales)


def _largest_pair(groups: Tensor) -> Tensor:
    """Returns the largest sum of two neighbours of one sign, `(out, groups)`, for `reduce_range`.

    x86 without VNNI adds `activation * code` of an even and the next odd column in 16 bits that saturate. With this
    sum coded as 127, two rounded codes add up to at most 128, and 255 * 128 fits.
    """
    pairs = F.pad(groups, (0, groups.shape[2] % 2)).unflatten(2, (-1, 2))
    positive = pairs.clamp(min=0).sum(dim=3).amax(dim=2)
    negative = pairs.clamp(max=0).sum(dim=3).amin(dim=2)
    return torch.maximum(positive, -negative)


def _asymmetric_scales(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Returns float16 scales and float64 zero points, `(out, groups)`; rounded up, so that the range fits."""
    low = groups.amin(dim=2).clamp(max=0)
    high = groups.amax(dim=2).clamp(min=0)
    scales = _round_up((high - low) / scheme.code_max)
    zero_points = torch.round(-low / scales.double().clamp(min=2**-24))
    return scales, zero_points.clamp(0, scheme.code_max)


def _round_up(values: Tensor) -> Tensor:
    """Returns the smallest float16 not below each of `values` (float64, not negative)."""
    halves = values.half()
    return torch.where(halves.double() < values, _neighbour(halves, 1), halves)


def _neighbour(values: Tensor, step: int) -> Tensor:
    """Returns the next float16 above (1) or below (-1) positive `values`: their bits count in order."""
    return (values.view(torch.int16) + step).view(torch.float16)
