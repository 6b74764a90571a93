"""HQQ: scales and zero points for a sparsity-promoting norm of the weight error, without any text.

Badri & Shaji 2023, half-quadratic quantization (https://mobiusml.github.io/hqq_blog/): minimize
`sum |w - scale (code - zero_point)|^p`, p < 1, which lets a few weights be far off, by alternating

    outlier = shrink(w - decoded)        shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
    scale, zero_point = the least-squares fit of w - outlier to the codes
    code = round(w / scale) + zero_point,    beta = kappa * beta

Deviations: zero points are integers, as the kernels have them, so the fit moves the scale (the paper fixes it and moves
a float zero point); errors are measured in steps of the group's first scale, so that beta means the same for weights of
any size; the best of all iterations is kept, group by group. It knows nothing of models or files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.models.codes import QuantizedTensor, Scheme
from edgekit.models.threads import torch_threads
from edgekit.quantization.round_to_nearest import round_to_codes, split_rows
from edgekit.quantization.scales import choose_scales, group_columns, storable


@dataclass(frozen=True)
class HqqConfig:
    """Settings of HQQ, the paper's."""

    norm: float = 0.7
    """p, above 0 and at most 1: the lower, the fewer weights bear the error."""
    beta: float = 10.0
    """Weight of the quadratic term at the start."""
    kappa: float = 1.01
    """What beta is multiplied by after each iteration."""
    iterations: int = 20
    """Rounds of the alternation."""


def hqq_quantize(weight: Tensor, scheme: Scheme, config: HqqConfig | None = None) -> QuantizedTensor:
    """Returns codes of `weight`, `(out, in)` of any float type, under `scheme`.

    8-bit codes are those of round-to-nearest: formats that find their scales again need the largest code used.

    Raises:
        ModelError: the weights hold NaN or infinity.
        UnsupportedError: a scale exceeds float16.
    """
    config = config or HqqConfig()
    parts = []
    for rows in split_rows(weight):
        scales, zero_points = choose_scales(rows, scheme, "range")
        if scheme.bits < 8:
            scales, zero_points = _alternate(group_columns(rows.float(), scheme), scheme, config)
        parts.append((round_to_codes(rows, scales, zero_points, scheme), scales, zero_points))
    codes, scales, zero_points = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedTensor(codes, scales, None if scheme.symmetric else zero_points, scheme)


def shrink(errors: Tensor, norm: float, beta: float) -> Tensor:
    """Returns the part of `errors` that is taken for outliers, of the same shape."""
    sizes = errors.abs()
    return errors.sign() * (sizes - sizes.clamp(min=1e-12).pow(norm - 1) / beta).clamp(min=0)


@torch_threads(1)
def _alternate(groups: Tensor, scheme: Scheme, config: HqqConfig) -> tuple[Tensor, Tensor]:
    """Returns scales, float16, and zero points, uint8, `(out, groups)`, of weights `(out, groups, group_size)`."""
    scales, zeros = _start(groups, scheme)
    steps = scales.abs().unsqueeze(2)
    best_scales, best_zeros = scales, zeros
    codes = _codes(groups, scales, zeros, scheme)
    best = torch.full_like(scales, torch.inf)
    beta = config.beta
    for _ in range(config.iterations):
        errors = (groups - scales.unsqueeze(2) * (codes - zeros.unsqueeze(2))) / steps
        total = errors.abs().pow(config.norm).sum(dim=2)
        better = total < best
        best = torch.where(better, total, best)
        best_scales, best_zeros = torch.where(better, scales, best_scales), torch.where(better, zeros, best_zeros)
        target = groups - shrink(errors, config.norm, beta) * steps
        scales, zeros = _fit(target, codes, scales, zeros, scheme)
        codes = _codes(groups, scales, zeros, scheme)
        beta *= config.kappa
    return best_scales.half(), best_zeros.to(torch.uint8)


def _start(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Returns the scales that use the whole range of codes for the whole range of weights, float32."""
    flat = groups.flatten(1)
    wide = replace(scheme, group_size=groups.shape[2], activations="float")
    scales, zeros = choose_scales(flat, wide, "range")
    return scales.float(), zeros.float()


def _codes(groups: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
    codes = torch.round(groups / scales.unsqueeze(2)) + zeros.unsqueeze(2)
    return codes.clamp_(scheme.code_min, scheme.code_max)


def _fit(target: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Returns the storable scale and zero point next to the least-squares fit of `target` to `codes`."""
    if not scheme.symmetric:
        mean_code, mean_target = codes.mean(dim=2, keepdim=True), target.mean(dim=2, keepdim=True)
        spread = (codes - mean_code).square().sum(dim=2)
        slope = ((codes - mean_code) * (target - mean_target)).sum(dim=2) / spread
        offset = mean_code.squeeze(2) - mean_target.squeeze(2) / slope
        zeros = torch.where(torch.isfinite(offset), offset.round().clamp(0, scheme.code_max), zeros)
    centered = codes - zeros.unsqueeze(2)
    fitted = (centered * target).sum(dim=2) / centered.square().sum(dim=2)
    stored = storable(fitted.nan_to_num(), scheme).float()
    usable = torch.isfinite(stored) & ((stored > 0) if scheme.narrow_scales else (stored != 0))
    return torch.where(usable, stored, scales), zeros
