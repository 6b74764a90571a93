"""Chooses the scales (and zero points) of a weight before any code is chosen; they are float16 values from the start.

    range         symmetric    scale = absmax / code_max at 8 bits; (weight of the largest size) / code_min below
                  asymmetric   scale = (max - min) / code_max, zero_point = round(-min / scale); both include zero
    least error   the scale and zero point that minimize  sum_i importance_i (weight_i - scale (code_i - zero_point))^2
                  over a grid of narrower ranges, each refitted by least squares to the codes that it gives

Up to 4 bits, symmetric codes use their whole range (-8 to 7): the largest weight may fall on -8, and the scale then has
the opposite sign, as in llama.cpp's blocks. An asymmetric scale of up to 4 bits keeps so few significant bits that
`zero_point * scale` is a float16 value too, since some formats store that in place of the zero point. Narrow scales are
positive and keep the significant bits of a bfloat16.
Nothing here knows models or files.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import UnsupportedError
from edgekit.models.codes import Scheme
from edgekit.models.threads import torch_threads

ScaleChoice = Literal["least-error", "range"]

# Shares of the range that are tried: the fewer the codes, the more of the tails is worth clipping.
_SHARES = {
    8: (1.0,),
    4: (1.06, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7),
    3: (1.05, 0.97, 0.89, 0.81, 0.73, 0.65, 0.57),
    2: (1.0, 0.89, 0.78, 0.67, 0.56, 0.45, 0.34),
}
_FLOAT16_BITS, _BFLOAT16_BITS = 11, 8
"""Significant bits, the one that is not stored included."""
# Keeps columns that no calibration text excites from having no say at all.
_LEAST_IMPORTANCE = 1e-4


def group_columns(rows: Tensor, scheme: Scheme) -> Tensor:
    """Returns rows `(out, in)` as `(out, groups, group_size)`; the last group is filled up with zeros."""
    size = scheme.group_size or rows.shape[1]
    groups: Tensor = F.pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size))
    return groups


@torch_threads(1)  # passes over a cache's worth of weights: threads gain little, and spin where cores are busy
def choose_scales(
    rows: Tensor, scheme: Scheme, choice: ScaleChoice = "least-error", importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns scales, float16, and zero points, uint8, both `(out, groups)`.

    8-bit scales are always chosen by range: formats that find them again from the codes need the largest code used.

    Args:
        rows: weights, `(out, in)`, of any float type.
        scheme: what they become.
        choice: by range, or for the least error.
        importance: `(in,)`, not negative: what a column's squared error weighs; None: all the same.

    Raises:
        UnsupportedError: a scale exceeds float16.
    """
    groups = group_columns(rows.double(), scheme)
    symmetric = scheme.symmetric
    scales, zero_points = _symmetric_range(groups, scheme) if symmetric else _asymmetric_range(groups, scheme)
    if not torch.isfinite(scales).all():
        raise UnsupportedError(f"found a weight of {rows.abs().max():.3g}, whose scale exceeds float16.")
    # A scale of zero means a channel of zeros; one keeps every reader from dividing by zero.
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    if choice == "least-error" and scheme.bits < 8:
        weights = _group_importance(importance, rows.shape[1], scheme)
        search = _Search(groups.float(), weights, scheme, scales.float(), zero_points.float())
        if symmetric:
            _search_symmetric(search)
        else:
            _search_asymmetric(search)
        scales, zero_points = search.scales.half(), search.zero_points.to(torch.uint8)
    return scales, zero_points


class _Search:
    """The best scale and zero point of each group so far, `(out, groups)`, and their error.

    Every candidate passes over all weights a dozen times, so buffers are kept from one to the next, and what changes
    no bit is left out: importances that are all one, zero points that are all zero.
    """

    def __init__(
        self, groups: Tensor, weights: Tensor | None, scheme: Scheme, scales: Tensor, zero_points: Tensor
    ) -> None:
        """Starts from scales and zero points that are to be beaten."""
        self.groups = groups
        self.weights = weights
        self.scheme = scheme
        self.scales = scales
        self.zero_points = zero_points
        self._rounded, self._centered, self._products = (torch.empty_like(groups) for _ in range(3))
        self.errors = self._error(scales, zero_points)

    def offer(self, scales: Tensor, *candidates: Tensor) -> None:
        """Refits `scales` to the codes that they give with each zero point, and keeps the result where it is better."""
        rounded = self._round(scales, self._rounded)
        for zero_points in candidates:
            self._offer(scales, zero_points, self._clamp(rounded, zero_points))

    def _offer(self, scales: Tensor, zero_points: Tensor, centered: Tensor) -> None:
        weighted = centered if self.weights is None else self.weights * centered
        power = torch.mul(weighted, centered, out=self._products).sum(dim=2)
        fitted = torch.mul(weighted, self.groups, out=self._products).sum(dim=2) / power
        fitted = storable(torch.where(power > 0, fitted, scales), self.scheme).float()
        error = self._error(fitted, zero_points)
        better = (error < self.errors) & torch.isfinite(fitted) & (fitted != 0)
        self.errors = torch.where(better, error, self.errors)
        self.scales = torch.where(better, fitted, self.scales)
        self.zero_points = torch.where(better, zero_points, self.zero_points)

    def _round(self, scales: Tensor, out: Tensor) -> Tensor:
        """Returns each weight in its scale, rounded, in `out`."""
        inverse = (1 / scales).nan_to_num(posinf=0, neginf=0).unsqueeze(2)
        return torch.mul(self.groups, inverse, out=out).round_()

    def _clamp(self, rounded: Tensor, zero_points: Tensor) -> Tensor:
        """Returns codes less their zero point, where that keeps the codes between `code_min` and `code_max`."""
        low, high = self.scheme.code_min, self.scheme.code_max
        if self.scheme.symmetric:
            return torch.clamp(rounded, low, high, out=self._centered)
        zeros = zero_points.unsqueeze(2)
        # twice as fast as `clamp` with bounds that differ
        above = torch.maximum(rounded, low - zeros, out=self._centered)
        return torch.minimum(above, high - zeros, out=self._centered)

    def _error(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        decoded = self._clamp(self._round(scales, self._products), zero_points).mul_(scales.unsqueeze(2))
        squares = torch.sub(self.groups, decoded, out=self._products).square_()
        error: Tensor = (squares if self.weights is None else squares.mul_(self.weights)).sum(dim=2)
        return error


def _search_symmetric(search: _Search) -> None:
    """Tries both signs: the largest weight on the lowest code, which reaches further, or on the highest.

    A narrow scale stays positive: where the largest weight is, the lowest code may then clip it.
    """
    high, low = search.groups.amax(dim=2), search.groups.amin(dim=2)
    extreme = torch.where(high > -low, high, low)
    zeros = torch.zeros_like(extreme)
    for share in _SHARES[search.scheme.bits]:
        for code in (search.scheme.code_min, search.scheme.code_max):
            scales = extreme * (share / code)
            search.offer(scales.abs() if search.scheme.narrow_scales else scales, zeros)


def _search_asymmetric(search: _Search) -> None:
    """Tries the zero points next to the one of each narrower range."""
    low, high = search.groups.amin(dim=2).clamp(max=0), search.groups.amax(dim=2).clamp(min=0)
    code_max = search.scheme.code_max
    for share in _SHARES[search.scheme.bits]:
        scales = (high - low) * (share / code_max)
        zero_points = torch.round((-low * share / scales).nan_to_num())
        search.offer(scales, *((zero_points + step).clamp(0, code_max) for step in (0, 1, -1)))


def storable(scales: Tensor, scheme: Scheme) -> Tensor:
    """Returns the values next to `scales` that every format holds, as float16."""
    if not scheme.narrow_scales and (scheme.symmetric or scheme.bits == 8):
        return scales.half()
    mantissas, exponents = torch.frexp(scales)
    return torch.ldexp(torch.round(torch.ldexp(mantissas, _kept(scheme))), exponents - _kept(scheme)).half()


def _storable_above(scales: Tensor, scheme: Scheme) -> Tensor:
    """Returns the smallest such value not below each of `scales` (float64, not negative)."""
    if scheme.bits < 8:
        mantissas, exponents = torch.frexp(scales)
        scales = torch.ldexp(torch.ceil(torch.ldexp(mantissas, _kept(scheme))), exponents - _kept(scheme))
    return _round_up(scales)


def _kept(scheme: Scheme) -> Tensor:
    """Significant bits of a narrow scale, or those that leave room for a zero point's."""
    return torch.tensor(_BFLOAT16_BITS if scheme.narrow_scales else _FLOAT16_BITS - scheme.bits)


def _group_importance(importance: Tensor | None, columns: int, scheme: Scheme) -> Tensor | None:
    """Returns what each place of a group weighs, `(1, groups, group_size)` float32; None: all the same."""
    if importance is None:
        return None
    mean = importance.double().mean()
    relative = importance.double() / mean if mean > 0 else torch.ones_like(importance, dtype=torch.float64)
    return group_columns(relative.clamp(min=_LEAST_IMPORTANCE).reshape(1, columns), scheme).float()


def _symmetric_range(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Returns float16 scales `(out, groups)` that give the largest weight the code farthest from zero, and zeros."""
    zero_points = groups.new_zeros(groups.shape[:2], dtype=torch.uint8)
    if scheme.reduce_range:
        return _round_up(_largest_pair(groups) / scheme.code_max), zero_points
    if scheme.code_min < -scheme.code_max:
        high, low = groups.amax(dim=2), groups.amin(dim=2)
        if scheme.narrow_scales:
            return storable(torch.maximum(high / scheme.code_max, low / scheme.code_min), scheme), zero_points
        return (torch.where(high > -low, high, low) / scheme.code_min).half(), zero_points
    largest = groups.abs().amax(dim=2)
    scales = (largest.float() / scheme.code_max).half()
    # Among float16's subnormals, or by a tie, the nearest scale can be too large for that.
    too_large = largest <= (scheme.code_max - 0.5) * scales.double()
    return torch.where(too_large & (scales > 0), _neighbour(scales, -1), scales), zero_points


def _largest_pair(groups: Tensor) -> Tensor:
    """Returns the largest sum of two neighbours of one sign, `(out, groups)`, for `reduce_range`.

    x86 without VNNI adds `activation * code` of an even and the next odd column in 16 bits that saturate. With this
    sum coded as 127, two rounded codes add up to at most 128, and 255 * 128 fits.
    """
    pairs = F.pad(groups, (0, groups.shape[2] % 2)).unflatten(2, (-1, 2))
    positive = pairs.clamp(min=0).sum(dim=3).amax(dim=2)
    negative = pairs.clamp(max=0).sum(dim=3).amin(dim=2)
    return torch.maximum(positive, -negative)


def _asymmetric_range(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Returns float16 scales and uint8 zero points, `(out, groups)`; rounded up, so that the range fits."""
    low = groups.amin(dim=2).clamp(max=0)
    high = groups.amax(dim=2).clamp(min=0)
    scales = _storable_above((high - low) / scheme.code_max, scheme)
    zero_points = torch.round(-low / scales.double().clamp(min=2**-24))
    return scales, zero_points.clamp(0, scheme.code_max).to(torch.uint8)


def _round_up(values: Tensor) -> Tensor:
    """Returns the smallest float16 not below each of `values` (float64, not negative)."""
    halves = values.half()
    return torch.where(halves.double() < values, _neighbour(halves, 1), halves)


def _neighbour(values: Tensor, step: int) -> Tensor:
    """Returns the next float16 above (1) or below (-1) positive `values`: their bits count in order."""
    return (values.view(torch.int16) + step).view(torch.float16)
