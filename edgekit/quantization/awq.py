"""AWQ: channels that carry large inputs are scaled up before rounding, and what feeds them is scaled down.

Lin et al. 2023, https://arxiv.org/abs/2306.00978. With s = magnitude^alpha a scale for each input channel, the search
over alpha (equations 4 and 5) minimizes the error of the product, here from H = X^T X instead of the inputs themselves:

    |(Q(W s) / s - W) X^T|^2 = trace(D H D^T),    D = Q(W s) / s - W

Deviations: the error is measured on a sample of each weight's rows; scales of groups are chosen for the least error
weighted by the inputs, which takes the place of the paper's search for clipping. Where the scales are folded in is in
`folding.py`. It knows nothing of models, text or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from edgekit.models.codes import Scheme
from edgekit.quantization.round_to_nearest import quantize_tensor


@dataclass(frozen=True)
class AwqConfig:
    """Settings of AWQ."""

    grid: int = 10
    """Values of alpha that are tried, from 0 (no scaling) up to below 1."""
    sampled_rows: int = 96
    """Rows of each weight that the error is measured on."""


@dataclass(frozen=True)
class Scaling:
    """A scale for each input channel, and what it is worth."""

    scales: Tensor
    """`(in,)` float32, positive; the weight's columns are multiplied by it, their input divided."""
    alpha: float
    """The exponent of the input's magnitude; 0: all scales are one."""
    error: float
    """Squared error of the sampled products with these scales."""
    error_before: float
    """The same without scaling."""


def search_scaling(
    weights: Sequence[tuple[Tensor, Scheme]], hessian: Tensor, magnitude: Tensor, config: AwqConfig | None = None
) -> Scaling:
    """Returns the best scaling of the input that all `weights` read.

    Args:
        weights: each `(out, in)`, with what it becomes.
        hessian: X^T X of the inputs, `(in, in)`.
        magnitude: mean absolute input of each channel, `(in,)`.
        config: settings.
    """
    config = config or AwqConfig()
    sampled = [(_sample(weight, config.sampled_rows), scheme) for weight, scheme in weights]
    hessian = hessian.float() / max(1e-30, float(hessian.diagonal().mean()))
    importance = hessian.diagonal().clone()
    found: list[tuple[float, float, Tensor]] = []
    for step in range(config.grid):
        alpha = step / config.grid
        scales = channel_scales(magnitude, alpha)
        error = sum(float(_error(weight, scheme, scales, hessian, importance)) for weight, scheme in sampled)
        found.append((error, alpha, scales))
    error, alpha, scales = min(found, key=lambda entry: entry[:2])
    return Scaling(scales, alpha, error, found[0][0])


def channel_scales(magnitude: Tensor, alpha: float) -> Tensor:
    """Returns `magnitude ** alpha`, `(in,)` float32, with the geometric mean of its extremes at one."""
    scales = magnitude.double().clamp(min=1e-4 * float(magnitude.mean()) + 1e-30).pow(alpha)
    return (scales / (scales.max() * scales.min()).sqrt()).float()


def _sample(weight: Tensor, rows: int) -> Tensor:
    """Returns about `rows` rows, evenly spaced."""
    return weight.detach().float()[:: max(1, len(weight) // rows)]


def _error(weight: Tensor, scheme: Scheme, scales: Tensor, hessian: Tensor, importance: Tensor) -> Tensor:
    scaled = quantize_tensor(weight * scales, scheme, importance=importance / scales.square())
    difference = scaled.dequantize() / scales - weight
    return ((difference @ hessian) * difference).sum()
