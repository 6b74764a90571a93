"""What a measurement cost in energy, where something measured it."""

from __future__ import annotations

from typing import Literal

from edgekit.results.base import Result


class Energy(Result):
    """Energy while a model was sampled: measured, or said to be unavailable; never estimated."""

    source: Literal["rapl", "meter", "unavailable"]
    """`rapl`: the processor's counters, of whole packages; `meter`: a power meter's file, of the whole device."""
    reason: str = ""
    """Why it is unavailable; empty where it is not."""
    joules: float | None = None
    """Energy of all samples; whatever else the device did meanwhile, idling too, is in it."""
    seconds: float | None = None
    """Time that it is the energy of."""
    joules_per_item: float | None = None
    """The same over the calls of a classifier, or the tokens that a language model wrote."""
