"""Watches the machine while a process is measured: other work on its cores, their frequency, the load, the energy.

It reads Linux's `/proc` and `/sys` and nothing of the measured process but its processor time; where they are missing,
the figures are unknown. It judges nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.benchmarking.energy import meter_energy, rapl_joules, read_rapl, spent, unavailable, why_no_rapl
from edgekit.benchmarking.machine import load_average
from edgekit.benchmarking.memory import Memory
from edgekit.results import Conditions, Energy, MemorySplit

_PROC = Path("/proc")
_CPU = Path("/sys/devices/system/cpu")
_BUSY = (0, 1, 2, 5, 6)
"""Places in a line of /proc/stat: user, nice, system, interrupts, soft interrupts."""
_STOLEN = 7
_LEAST_TICKS = 50
"""Of less the shares would be chance: a tick is a hundredth of a second."""
_PROCESS_TIMES = (11, 12)
"""Places after the name in /proc/PID/stat: user and system time of all threads."""


@dataclass(frozen=True)
class _Reading:
    """Processor time until now, in ticks."""

    busy: int
    stolen: int
    every: int
    own: int


class Surroundings:
    """What was seen around one series of samples; several processes may give one after another."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._busy = self._stolen = self._every = self._own = 0
        self._frequency_before: float | None = None
        self._frequencies: list[float] = []
        self._windows: list[tuple[float, float]] = []
        self._joules: float | None = 0.0

    @contextmanager
    def watch(self, pid: int, cores: Sequence[int]) -> Iterator[None]:
        """Watches while the process `pid`, pinned to `cores`, is made to sample."""
        before, energy = _read(pid, cores), read_rapl()
        self._note_frequency(cores)
        started = time.time()
        yield
        self._windows.append((started, time.time()))
        self._count_energy(energy)
        after = _read(pid, cores)
        self._note_frequency(cores)
        if before is not None and after is not None:
            self._busy += after.busy - before.busy
            self._stolen += after.stolen - before.stolen
            self._every += after.every - before.every
            self._own += after.own - before.own

    def conditions(self) -> Conditions:
        """Returns what was seen until now, and the load average now."""
        known = self._every >= _LEAST_TICKS
        return Conditions(
            load_average_after=load_average(),
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
            return unavailable(why_no_rapl())
        return spent("rapl", self._joules, sum(end - begin for begin, end in self._windows), items)

    def _count_energy(self, before: dict[str, int] | None) -> None:
        after = read_rapl()
        if before is None or after is None or self._joules is None:
            self._joules = None
        else:
            self._joules += rapl_joules(before, after)

    def _note_frequency(self, cores: Sequence[int]) -> None:
        found = read_frequency_mhz(cores)
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


def read_frequency_mhz(cores: Sequence[int], directory: Path = _CPU) -> float | None:
    """Returns the frequency of the slowest of `cores` now, MHz; None where the system does not tell.

    Only cpufreq counts: what a virtual machine's /proc/cpuinfo says is a constant.
    """
    found = []
    for core in cores:
        text = _text(directory / f"cpu{core}" / "cpufreq" / "scaling_cur_freq").strip()
        if not text.isdigit():
            return None
        found.append(int(text) / 1e3)
    return min(found, default=None)


def core_ticks(stat: str, cores: Sequence[int]) -> tuple[int, int, int] | None:
    """Returns busy, stolen and all ticks of `cores` from the text of /proc/stat; None where it lacks one of them."""
    lines = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in stat.splitlines() if "cpu" in line}
    if not cores or any(f"cpu{core}" not in lines for core in cores):
        return None
    chosen = [lines[f"cpu{core}"] for core in cores]
    busy = sum(line[place] for line in chosen for place in _BUSY)
    stolen = sum(line[_STOLEN] for line in chosen)
    # the two last, guests' time, are part of user and nice
    return busy, stolen, sum(sum(line[: _STOLEN + 1]) for line in chosen)


def process_ticks(stat: str) -> int:
    """Returns the processor time of a process from the text of /proc/PID/stat, in ticks."""
    words = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return sum(int(words[place]) for place in _PROCESS_TIMES)


def _read(pid: int, cores: Sequence[int]) -> _Reading | None:
    own = _text(_PROC / str(pid) / "stat")
    found = core_ticks(_text(_PROC / "stat"), cores) if own and hasattr(os, "sched_getaffinity") else None
    return None if found is None else _Reading(*found, process_ticks(own))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
