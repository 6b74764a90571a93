"""Watches the machine while a process is measured: other work on its cores, their frequency, the load, the energy.

Of the measured process it sees nothing but its processor time (`processor_time.py`); where the system does not tell,
the figures are unknown. It judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.benchmarking.energy import meter_energy, rapl_joules, read_rapl, spent, unavailable, why_no_rapl
from edgekit.benchmarking.memory import Memory
from edgekit.benchmarking.processor_time import Look
from edgekit.results import Conditions, Energy, MemorySplit

_LEAST_TICKS = 50
"""Of less the shares would be chance: a tick is a hundredth of a second."""


class Surroundings:
    """What was seen around one series of samples; several processes may give one after another."""

    def __init__(self, *, has_counters: bool = True) -> None:
        """Starts with nothing seen; without `has_counters` this machine's energy does not count: another one runs."""
        self._has_counters = has_counters
        self._busy = self._stolen = self._every = self._own = 0
        self._frequency_before: float | None = None
        self._frequencies: list[float] = []
        self._windows: list[tuple[float, float]] = []
        self._joules: float | None = 0.0

    @contextmanager
    def watch(self, look: Callable[[], Look]) -> Iterator[None]:
        """Watches while a process is made to sample; `look` looks at it and its cores."""
        seen, energy = look(), read_rapl() if self._has_counters else None
        before = seen.ticks
        self._note_frequency(seen.frequency_mhz)
        started = time.time()
        yield
        self._windows.append((started, time.time()))
        self._count_energy(energy)
        seen = look()
        after = seen.ticks
        self._note_frequency(seen.frequency_mhz)
        if before is not None and after is not None:
            self._busy += after.busy - before.busy
            self._stolen += after.stolen - before.stolen
            self._every += after.every - before.every
            self._own += after.own - before.own

    def conditions(self, load_average_after: float) -> Conditions:
        """Returns what was seen until now, beside the load average now."""
        known = self._every >= _LEAST_TICKS
        return Conditions(
            load_average_after=load_average_after,
            other_work_share=max(0.0, self._busy - self._own) / self._every if known else None,
            stolen_share=self._stolen / self._every if known else None,
            frequency_before_mhz=self._frequency_before,
            frequency_low_mhz=min(self._frequencies, default=None),
            frequency_high_mhz=max(self._frequencies, default=None),
        )

    def energy(self, meter: Path | None, items: int) -> Energy:
        """Returns what was spent on `items` calls or tokens, by the meter's file where there is one, else by RAPL.

        Raises:
            UsageError: the file cannot be read.
        """
        if meter is not None:
            return meter_energy(meter, self._windows, items)
        if self._joules is None or not self._windows:
            return unavailable(why_no_rapl() if self._has_counters else "counters of another machine are not read")
        return spent("rapl", self._joules, sum(end - begin for begin, end in self._windows), items)

    def _count_energy(self, before: dict[str, int] | None) -> None:
        after = read_rapl() if self._has_counters else None
        if before is None or after is None or self._joules is None:
            self._joules = None
        else:
            self._joules += rapl_joules(before, after)

    def _note_frequency(self, found: float | None) -> None:
        if found is None:
            return
        if self._frequency_before is None:
            self._frequency_before = found
        self._frequencies.append(found)


def split_of(memory: Memory | None) -> MemorySplit | None:
    """Returns what a resident set is made of; None where that was never seen."""
    if memory is None:
        return None
    return MemorySplit(
        anonymous_bytes=memory.anonymous_bytes, file_bytes=memory.file_bytes, shared_bytes=memory.shared_bytes
    )
