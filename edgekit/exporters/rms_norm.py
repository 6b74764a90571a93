"""Recognizes root-mean-square norms by what they compute, whatever a model calls them.

    y = x / sqrt(mean(x^2) + epsilon) * scale        (Zhang and Sennrich, 2019, arXiv 1910.07467, equation 4)

The scale is the module's weight in most models and one more than it in Gemma's; it is read off the outputs, so that no
table of models is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_TOLERANCE = 1e-5
# Rows whose mean square is far above, near and below any epsilon.
_MAGNITUDES = (10.0, 1.0, 1e-2, 1e-3)


@dataclass(frozen=True)
class RmsNorm:
    """What such a norm computes."""

    scale: Tensor
    """float32 (H,)."""
    epsilon: float


def find_rms_norm(module: nn.Module) -> RmsNorm | None:
    """Returns what `module` computes, or None when it is no root-mean-square norm over the last dimension."""
    weight = getattr(module, "weight", None)
    parameters = list(module.parameters(recurse=False))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or len(parameters) != 1 or list(module.children()):
        return None
    epsilon = next(
        (getattr(module, name) for name in _EPSILONS if isinstance(getattr(module, name, None), float)), None
    )
    if epsilon is None or isinstance(module, nn.LayerNorm):
        return None
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(_MAGNITUDES), 1, weight.shape[0], generator=generator)
    probes = probes * torch.tensor(_MAGNITUDES)[:, None, None]
    normed = probes * torch.rsqrt(probes.pow(2).mean(-1, keepdim=True) + epsilon)
    try:
        with torch.no_grad():
            outputs = module(probes)
    except (RuntimeError, TypeError, ValueError):  # takes something else than one tensor
        return None
    if not isinstance(outputs, Tensor) or outputs.shape != probes.shape:
        return None
    for scale in (weight.detach().float(), 1 + weight.detach().float()):
        if torch.allclose(normed * scale, outputs, rtol=_TOLERANCE, atol=_TOLERANCE * 1e-3):
            return RmsNorm(scale, epsilon)
    return None
