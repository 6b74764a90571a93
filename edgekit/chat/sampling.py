"""Chooses the next token from logits. Plain maths on arrays; the randomness is an argument.

The choice is that of `distillation/writing.py`, which makes it for a batch in torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelError

_FEW = 512
"""Tokens that are sorted first: they nearly always hold `top_p`, and sorting all takes milliseconds."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn."""

    temperature: float = 0.0
    """Divides the logits; 0: always the likeliest token."""
    top_p: float = 1.0
    """Draws only from the likeliest tokens that together have this probability, 0 to 1."""


def choose_token(logits: NDArray[np.float32], uniform: float, sampling: Sampling) -> int:
    """Returns a token from its logits (V,) and a number in [0, 1), by inversion of the distribution function.

    `top_p` below 1 is nucleus sampling (Holtzman et al., arXiv:1904.09751): tokens by falling probability until they
    hold `top_p` together; the likeliest always stays, and equal ones are taken in the vocabulary's order.

    Raises:
        ModelError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ModelError("the model's logits are not finite numbers. Check the weights, or use another runtime.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if sampling.top_p >= 1:
        return _draw(p, uniform)
    order = _likeliest(p, sampling.top_p)
    kept = p[order]
    before = np.cumsum(kept) - kept
    return int(order[_draw(np.where(before < sampling.top_p, kept, 0.0), uniform)])


def _draw(p: NDArray[np.float64], uniform: float) -> int:
    cumulative = np.cumsum(p)
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(place, len(p) - 1)


def _likeliest(p: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """Returns tokens by falling probability, at least as many as hold `share` together."""
    if len(p) > _FEW:
        least = np.partition(p, -_FEW)[-_FEW]
        few = np.flatnonzero(p >= least)
        if p[few].sum() > share:
            order: NDArray[np.intp] = few[np.argsort(-p[few], kind="stable")]
            return order
    return np.argsort(-p, kind="stable")
