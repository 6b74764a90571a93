"""Measures how fast the processor reads its memory: both sides of a process that does nothing else.

It speaks as `worker.py` does:

    {"command": "prepare", "cores": [0, 1], "threads": 2, "bytes": 268435456} -> {}
    {"command": "read"} -> {"bytes_per_s": ...}

What slows a read is other work, so the fastest counts, as in STREAM (McCalpin, 1995).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgekit.benchmarking.worker import Message, answer_requests, pin
from edgekit.benchmarking.worker_process import WorkerProcess, WorkerSettings

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

_MODULE = "edgekit.benchmarking.bandwidth"
_BYTES = 256 * 2**20
"""Many times the last cache of most processors."""
_SHARE_OF_MEMORY = 8


class BandwidthProcess(WorkerProcess):
    """A process that reads memory with a number of threads; use it in a `with` statement, which ends it."""

    def __init__(self, threads: int, memory_bytes: int, timeout_s: float) -> None:
        """Starts nothing yet; of `memory_bytes`, the machine's, it takes an eighth at most."""
        super().__init__(_MODULE, "reading memory", WorkerSettings(threads, timeout_s))
        self._threads = threads
        self._bytes = min(_BYTES, memory_bytes // _SHARE_OF_MEMORY) if memory_bytes else _BYTES
        self.best_bytes_per_s = 0.0
        """The fastest read so far."""

    def prepare(self) -> None:
        """Fills the memory that is to be read."""
        self.ask("prepare", cores=self.cores, bytes=self._bytes, threads=self._threads)

    def read(self) -> None:
        """Reads it once."""
        self.best_bytes_per_s = max(self.best_bytes_per_s, float(self.ask("read")["bytes_per_s"]))


class _Reading:
    """Answers the requests above."""

    def __init__(self) -> None:
        self._parts: list[NDArray[float32]] = []

    def __call__(self, request: Message) -> Message:
        import numpy

        if request["command"] == "prepare":
            pin(request["cores"])
            values = numpy.ones(request["bytes"] // 4, dtype=numpy.float32)
            self._parts = numpy.array_split(values, request["threads"])
            return {}
        return {"bytes_per_s": read_once(self._parts)}


def read_once(parts: list[NDArray[float32]]) -> float:
    """Returns bytes a second, over one thread a part; each takes the largest value of its part, float32 (N,)."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(len, parts))  # the threads are there before the clock runs
        started = time.perf_counter_ns()
        list(pool.map(lambda part: part.max(), parts))
        seconds = (time.perf_counter_ns() - started) / 1e9
    return sum(part.nbytes for part in parts) / seconds


if __name__ == "__main__":
    answer_requests(_Reading())
