"""The names of the ways in which a linear on codes can be written; `linear_kernels.py` has them. It imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Lowering = Literal["dynamic-int8", "n-bits-int8", "n-bits-float", "decoded"]

TAKES_FLOATS: frozenset[Lowering] = frozenset({"n-bits-float", "decoded"})
"""Lowerings that take the input as it is."""


def takes_floats(lowerings: Mapping[str, Lowering]) -> set[str]:
    """Returns the modules whose input is taken as it is, whatever their scheme says."""
    return {name for name, lowering in lowerings.items() if lowering in TAKES_FLOATS}
