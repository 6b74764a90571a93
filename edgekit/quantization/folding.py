"""Moves a scale for each channel from a linear's input into what makes that input; the function stays the same.

    norm -> linears      the norm's weight and bias are divided by it, the columns of all linears multiplied
    up -> down           in a gated feed-forward: the rows of `up` are divided, the columns of `down` multiplied

It changes float weights in place and knows nothing of how the scales are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError

# How far a norm may be from its output divided by the scales, relative to its largest value.
_TOLERANCE = 1e-5


def scale_columns(linears: Sequence[nn.Module], scales: Tensor) -> None:
    """Multiplies the columns of `linears` by `scales` `(in,)`, in place."""
    for linear in linears:
        weight = linear.get_parameter("weight")
        weight.data *= scales[:, None] if _transposed(linear) else scales


def divide_rows(linear: nn.Module, scales: Tensor) -> None:
    """Divides what `linear` gives by `scales` `(out,)`, in place."""
    weight = linear.get_parameter("weight")
    weight.data /= scales if _transposed(linear) else scales[:, None]
    if isinstance(linear.bias, Tensor):
        linear.bias.data /= scales


def divide_norm(norm: nn.Module, scales: Tensor, name: str) -> None:
    """Divides what `norm` gives by `scales` `(hidden_size,)`, in place.

    Both kinds of norms are tried, those that multiply by their weight and those that multiply by one plus it (Gemma),
    and the one is taken that gives the right output.

    Raises:
        UnsupportedError: neither is right; the norm is left as it was.
    """
    parameters = dict(norm.named_parameters(recurse=False))
    weight, bias = parameters.pop("weight", None), parameters.pop("bias", None)
    if weight is None or weight.shape != scales.shape or parameters:
        raise UnsupportedError(_refusal(norm, name))
    probe = torch.linspace(-2, 3, 4 * len(scales)).reshape(4, -1).cos() + 0.1
    with torch.no_grad():
        wanted = norm(probe) / scales
        kept = weight.detach().clone()
        kept_bias = None if bias is None else bias.detach().clone()
        if bias is not None:
            bias.data /= scales
        for divided in (kept / scales, (kept + 1) / scales - 1):
            weight.data = divided
            if (norm(probe) - wanted).abs().max() <= _TOLERANCE * wanted.abs().max():
                return
        weight.data = kept
        if bias is not None and kept_bias is not None:
            bias.data = kept_bias
    raise UnsupportedError(_refusal(norm, name))


def _refusal(norm: nn.Module, name: str) -> str:
    return (
        f"awq: module '{name}': found {type(norm).__name__}, expected a norm that multiplies by its weight, or by one "
        "plus it. Use algorithm = 'gptq'."
    )


def _transposed(linear: nn.Module) -> bool:
    """True for transformers' `Conv1D`, whose weight is `(in, out)`."""
    return type(linear).__name__ == "Conv1D"
