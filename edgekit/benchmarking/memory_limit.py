"""Finds the smallest memory limit under which a model still runs, by halving over fresh processes.

The limit is RLIMIT_DATA, which `worker.py` sets before it imports anything: Linux then refuses private writable memory
(heap, anonymous maps, stacks of threads) beyond it, touched or not. Mapped files do not count. How a process is started
and what it runs is the caller's matter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from edgekit.errors import EnvironmentLacksError, MeasurementError, MemoryLimitError
from edgekit.events import Event, EventSink
from edgekit.results import MemoryLimit, MemoryTrial

MIB = 2**20
_RESOLUTION = 0.01
_MOST_GROWTH = 10
_OUTCOME_LENGTH = 300


def require_limits() -> None:
    """Does nothing where the system has such a limit.

    Raises:
        EnvironmentLacksError: it has none.
    """
    if not sys.platform.startswith("linux"):
        raise EnvironmentLacksError(
            f"memory_limit: found the system '{sys.platform}', expected Linux, whose RLIMIT_DATA it is. Leave it out."
        )


def find_smallest_limit(attempt: Callable[[int], None], start_bytes: int, events: EventSink) -> MemoryLimit:
    """Returns the smallest limit under which `attempt` succeeds, to 1 % of `start_bytes` or 1 MiB.

    Args:
        attempt: runs the model in a fresh process under a limit in bytes, and raises MemoryLimitError where it does
            not run.
        start_bytes: where to begin, for example the peak of a process without a limit; it need not be enough.
        events: told of every process.

    Raises:
        MeasurementError: it does not run under 512 times that either.
    """
    trials: list[MemoryTrial] = []

    def runs(limit_bytes: int) -> bool:
        outcome = "runs"
        try:
            attempt(limit_bytes)
        except MemoryLimitError as error:
            outcome = " ".join(str(error.__cause__ or error).split())[:_OUTCOME_LENGTH]
        trials.append(MemoryTrial(limit_bytes=limit_bytes, runs=outcome == "runs", outcome=outcome))
        words = "runs" if outcome == "runs" else "does not run"
        events(Event("message", stage="bench", text=f"{limit_bytes / MIB:.0f} MiB: {words}"))
        return outcome == "runs"

    resolution = max(round(start_bytes * _RESOLUTION), MIB)
    low, high = 0, start_bytes
    for _ in range(_MOST_GROWTH):
        if runs(high):
            break
        low, high = high, 2 * high
    else:
        raise MeasurementError(
            f"memory_limit: found no limit up to {low / MIB:,.0f} MiB under which the model runs, although it ran "
            f"without one. The last process: {trials[-1].outcome}"
        )
    while high - low > resolution:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return MemoryLimit(smallest_bytes=high, resolution_bytes=resolution, trials=trials)
