"""What else the machine did while a measurement was taken."""

from __future__ import annotations

from edgekit.results.base import Result


class Conditions(Result):
    """The machine beside the process that was measured: checked before it and while it sampled."""

    load_average_after: float
    """One-minute load average when the measurement was done; -1 where the system has none."""
    other_work_share: float | None = None
    """Share of the time of the measured process's cores that other processes took while it sampled, 0 to 1; None where
    the system does not tell, the process has no cores of its own, or that was less than half a second."""
    stolen_share: float | None = None
    """Share of the same time that the host of a virtual machine gave to others, 0 to 1; None where it is not told."""
    frequency_before_mhz: float | None = None
    """Frequency of the slowest of its cores before the sampling; None where the system does not tell."""
    frequency_low_mhz: float | None = None
    """The lowest that was seen between samples."""
    frequency_high_mhz: float | None = None
    """The highest that was seen between samples."""
