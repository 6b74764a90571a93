"""Figures that nobody measured.

`Estimate` is no kind of measurement, on purpose: an estimate never looks like one.
"""

from __future__ import annotations

from edgekit.results.base import Result


class Estimate(Result):
    """A figure that nobody measured, with the formula that gave it."""

    quantity: str
    """What is estimated, for example `latency`."""
    low: float
    """Optimistic end: the roofline itself."""
    high: float
    """Pessimistic end: the roofline over the stated efficiency."""
    unit: str
    formula: str
    """The formula with its numbers filled in."""
    assumptions: list[str]
    """What must hold for the estimate to be near."""


class EstimateCheck(Result):
    """An estimate beside a measurement of the same figure, taken on a machine that counts as the target."""

    estimate: Estimate
    """Made without a look at the measurement."""
    measured: float
    """In the estimate's unit: the median latency, the decode speed, or the memory that the model added."""
    ratio: float
    """What was measured over the geometric middle of the estimate's range: 2 is twice the middle."""
    within: bool
    """Whether what was measured lies in the range."""
