"""Reads the kernel's clocks: processor time of cores and of a process, and the cores' frequency.

Standard library only: what runs on a device imports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_PROC = Path("/proc")
_CPU = Path("/sys/devices/system/cpu")
_BUSY = (0, 1, 2, 5, 6)
"""Places in a line of /proc/stat: user, nice, system, interrupts, soft interrupts."""
_STOLEN = 7
_PROCESS_TIMES = (11, 12)
"""Places after the name in /proc/PID/stat: user and system time of all threads."""


@dataclass(frozen=True)
class Ticks:
    """Processor time until now, in ticks: hundredths of a second."""

    busy: int
    """Of the cores, whoever used them."""
    stolen: int
    """Of the cores, when other guests of the host had them."""
    every: int
    """Of the cores, idle time included."""
    own: int
    """Of the process."""


@dataclass(frozen=True)
class Look:
    """What one look at a process and its cores shows; None: the system does not tell."""

    ticks: Ticks | None
    frequency_mhz: float | None
    """Of the slowest of the cores."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name, for a JSON line."""
        return asdict(self)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Returns what `as_dict` gave."""
        ticks = fields["ticks"]
        return cls(None if ticks is None else Ticks(**ticks), fields["frequency_mhz"])


def look_at(pid: int, cores: Sequence[int]) -> Look:
    """Looks at the process `pid`, which is pinned to `cores`, now."""
    own = _text(_PROC / str(pid) / "stat")
    found = core_ticks(_text(_PROC / "stat"), cores) if own and hasattr(os, "sched_getaffinity") else None
    ticks = None if found is None else Ticks(*found, process_ticks(own))
    return Look(ticks, read_frequency_mhz(cores))


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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
