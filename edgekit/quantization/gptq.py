"""GPTQ: codes chosen column by column, each column's rounding error made good by those that follow.

Frantar et al. 2023, https://arxiv.org/abs/2210.17323. With H = X^T X over the calibration text and U the upper Cholesky
factor of its inverse, column i in turn is rounded, and its error is spread over the columns j > i (equation 2 with the
Cholesky reformulation of section 3.3):

    error_i = (w_i - decoded_i) / U_ii          w_j -= error_i U_ij

Deviations: scales are float16 values chosen for the least error weighted by the diagonal of H; with `act_order` they
are chosen for all groups before the first column ("static groups"), so that groups stay neighbours along `in`.
It knows nothing of models, text or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import ModelError
from edgekit.models.codes import QuantizedTensor, Scheme
from edgekit.quantization.round_to_nearest import split_rows
from edgekit.quantization.scales import ScaleChoice, choose_scales

# Errors of about so many columns are gathered before the columns after them are corrected: speed only.
_BLOCK_COLUMNS = 128


@dataclass(frozen=True)
class GptqConfig:
    """Settings of GPTQ."""

    damping: float = 0.01
    """Added to the diagonal of H, as a share of its mean; raised tenfold until H can be inverted."""
    act_order: bool = True
    """Takes the columns with the largest inputs first, instead of from left to right."""
    scales: ScaleChoice = "least-error"
    """How scales are chosen."""


def gptq_quantize(weight: Tensor, hessian: Tensor, scheme: Scheme, config: GptqConfig | None = None) -> QuantizedTensor:
    """Returns codes of `weight`, `(out, in)`, that lose little of its product with the calibration inputs.

    Args:
        weight: any float type.
        hessian: X^T X of those inputs, `(in, in)`, float64; a column without input is rounded to nearest.
        scheme: what the weight becomes.
        config: settings.

    Raises:
        ModelError: the weights or `hessian` hold NaN or infinity.
        UnsupportedError: a scale exceeds float16.
    """
    config = config or GptqConfig()
    if not torch.isfinite(hessian).all():
        raise ModelError("found NaN or infinity among the inputs of the calibration text, expected finite numbers.")
    importance = hessian.diagonal().clone()
    order = torch.argsort(importance, descending=True, stable=True) if config.act_order else None
    chosen = [choose_scales(rows, scheme, config.scales, importance) for rows in split_rows(weight)]
    scales, zero_points = (torch.cat(part) for part in zip(*chosen, strict=True))
    state = _State(weight, scales, zero_points, scheme, importance, order)
    if order is not None:
        hessian = hessian[order][:, order]
    _run(state, inverse_factor(hessian, config.damping).float(), config)
    codes = state.codes if order is None else state.codes[torch.argsort(order)]
    codes = codes.T.contiguous().to(scheme.code_dtype)
    return QuantizedTensor(codes, state.scales, None if scheme.symmetric else state.zero_points, scheme)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Returns the upper Cholesky factor U of the inverse of the damped `hessian`, `U^T U`, `(in, in)` float64.

    Raises:
        ModelError: no damping up to the mean of the diagonal makes it positive definite.
    """
    hessian = hessian.double().clone()
    silent = hessian.diagonal() == 0
    hessian.diagonal()[silent] = 1
    mean = float(hessian.diagonal().mean())
    while damping <= 1:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        damping = max(10 * damping, 1e-6)
    raise ModelError("found a Hessian of the calibration inputs that is not positive definite, however damped.")


class _State:
    """Weights on their way to codes, a row for each input channel, in the order in which they are rounded."""

    def __init__(  # noqa: PLR0913 - the parts of one weight
        self,
        weight: Tensor,
        scales: Tensor,
        zero_points: Tensor,
        scheme: Scheme,
        importance: Tensor,
        order: Tensor | None,
    ) -> None:
        """Starts with all columns unrounded."""
        columns = weight.shape[1]
        places = torch.arange(columns) if order is None else order
        self.left_to_right = order is None
        self.weights = weight.detach().float().T[places].contiguous()  # (in, out)
        self.codes = torch.zeros_like(self.weights, dtype=torch.int16)
        self.group_of = (places // (scheme.group_size or columns)).tolist()
        self.scales, self.zero_points = scales.clone(), zero_points.clone()
        self.scheme = scheme
        self.importance = importance

    def start_group(self, column: int, choice: ScaleChoice) -> None:
        """Chooses the scales of the group that starts at `column` for the weights as they are by now."""
        size = self.scheme.group_size
        if size is None or not self.left_to_right or column % size:
            return
        group = self.group_of[column]
        rows = self.weights[column : column + size].T
        scales, zero_points = choose_scales(rows, self.scheme, choice, self.importance[column : column + size])
        self.scales[:, group], self.zero_points[:, group] = scales[:, 0], zero_points[:, 0]

    def round(self, column: int, weights: Tensor) -> Tensor:
        """Chooses the codes of a column and returns what they stand for, `(out,)`."""
        group = self.group_of[column]
        scales, zero_points = self.scales[:, group].float(), self.zero_points[:, group].float()
        codes = torch.round(weights / scales).add_(zero_points).clamp_(self.scheme.code_min, self.scheme.code_max)
        self.codes[column] = codes.to(torch.int16)
        return (codes - zero_points) * scales


def _run(state: _State, factor: Tensor, config: GptqConfig) -> None:
    """Rounds all columns; `factor` is U, `(in, in)` float32, in the order of `state`."""
    columns = len(state.weights)
    # Whole groups, so that a group's scales are chosen for weights that know of all columns before it.
    size = state.scheme.group_size or _BLOCK_COLUMNS
    block = size * max(1, _BLOCK_COLUMNS // size)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.zeros(end - start, state.weights.shape[1])
        for column in range(start, end):
            state.start_group(column, config.scales)
            weights = state.weights[column]
            error = (weights - state.round(column, weights)) / factor[column, column]
            state.weights[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
            errors[column - start] = error
        state.weights[end:] -= factor[start:end, end:].T @ errors
