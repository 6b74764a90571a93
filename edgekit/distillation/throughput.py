"""How fast a run is, what it holds in memory and how long it will take, as told after each step."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Throughput:
    """Rate, peak memory and time left of one run; the first step, which makes what later ones reuse, counts in none."""

    def __init__(self, unit: str, total: int, device: torch.device) -> None:
        """Starts the clock; `total` is the number of the run's last step."""
        self._unit, self._total, self._device = unit, total, device
        self._started = self._first = time.monotonic()
        self._done = self._steps = 0

    def after_step(self, step: int, amount: int) -> dict[str, float]:
        """Returns what is told after step `step`, in which `amount` rows or tokens were learned from."""
        now = time.monotonic()
        self._steps += 1
        if self._steps == 1:
            seconds, done, steps = now - self._started, amount, 1
            self._first = now
        else:
            self._done += amount
            seconds, done, steps = now - self._first, self._done, self._steps - 1
        return {
            f"{self._unit}_per_s": done / max(seconds, 1e-9),
            "seconds_left": seconds / steps * (self._total - step),
            "peak_memory_bytes": float(peak_memory_bytes(self._device)),
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory that this process has held: of its accelerator, or resident where it has none."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
