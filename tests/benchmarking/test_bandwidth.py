"""Reading memory: in a process of its own, pinned, every byte of it."""

from __future__ import annotations

import numpy as np

from edgekit.benchmarking.bandwidth import BandwidthProcess, read_once
from edgekit.benchmarking.machine import choose_cores


def test_the_best_read_is_kept_and_the_process_is_pinned():
    import os

    with BandwidthProcess(1, 64 * 2**20, 60.0) as process:
        process.read()
        first = process.best_bytes_per_s
        for _ in range(5):
            process.read()
        assert process.best_bytes_per_s >= first > 1e6
        assert os.sched_getaffinity(process._process.pid) == set(choose_cores(1))


def test_the_rate_is_bytes_over_time(monkeypatch):
    import time

    ticks = iter([1_000_000_000, 1_500_000_000])
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    parts = np.array_split(np.ones(1000, dtype=np.float32), 3)
    assert read_once(parts) == 8000
