"""The samples of one classifier, from one or more fresh processes: warming up, taking turns, summing up.

When there are enough of them is the matter of `harness.py` and `turns.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from edgekit.benchmarking.journal import Journal
from edgekit.benchmarking.memory import Memory
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.statistics import (
    count_outliers,
    has_settled,
    median_absolute_deviation,
    quantile_interval,
)
from edgekit.benchmarking.surroundings import Surroundings, split_of
from edgekit.benchmarking.verdict import MARGIN
from edgekit.benchmarking.worker_process import Opened
from edgekit.events import Event, EventSink
from edgekit.results import Measurement
from edgekit.runtimes.protocol import model_bytes

STAGE = "bench"
CHUNK_S = 0.5
_TURN_S = 0.15
_TURN_RUNS = (3, 1000)
_KEPT_SAMPLES = 10_000
_REWARM_S = 2.0


@dataclass(frozen=True)
class Sampling:
    """How much to sample."""

    min_samples: int = 30
    """Samples at least."""
    min_seconds: float = 3.0
    """Seconds of sampling at least."""
    interval_width: float | None = None
    """Sampling goes on until the 95 % interval, of p50 or of the ratio, is at most this share of it wide."""
    decide_p95_ms: float | None = None
    """A limit for p95: sampling goes on until the interval clears it."""
    max_seconds: float = 30.0
    """Seconds of sampling at most when a limit is to be decided or an interval to be narrowed."""
    energy_csv: Path | None = None
    """A power meter's file; without it the processor's counters, where there are any."""
    timeout_s: float = 120.0
    """Seconds that one call, or the load, may take before the process counts as hung."""
    journal: Journal | None = None
    """Where samples are written as they come."""
    pairs: int = 8
    """Fresh pairs of processes that two models take turns in, at least."""
    margin: float = MARGIN
    """Differences of speed up to this share do not count."""
    warmup_window: int = 10
    """Calls in each of the two windows that the warm-up compares."""
    warmup_spread: float = 0.05
    """Largest quartile coefficient of variation of the last window."""
    warmup_drift: float = 0.03
    """Largest relative difference of the two windows' medians."""
    max_warmup_s: float = 10.0
    """Seconds after which sampling begins although the spread has not settled."""


@dataclass
class Series:
    """The samples of one model; `process` is the one that runs it now."""

    subject: Subject
    journal: Journal | None = None
    """Where samples are written as they come."""
    load_average: float = field(init=False)
    surroundings: Surroundings = field(init=False)
    warmup_runs: int = 0
    settled: bool = True
    samples_ns: list[int] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    largest: list[Memory] = field(default_factory=list)
    calls: int = 0
    spent_ns: int = 0
    calls_per_sample: int = 1
    _process: MeasuringProcess | None = None

    def __post_init__(self) -> None:
        """Notes how busy the device is before anything runs."""
        self.load_average = self.subject.device.load_average()
        self.surroundings = Surroundings(has_counters=self.subject.device.is_here)

    @property
    def seconds(self) -> float:
        """Returns the time of all calls that were sampled."""
        return self.spent_ns / 1e9

    @contextmanager
    def open(self, sampling: Sampling) -> Iterator[None]:
        """Opens the model in a fresh process, which ends with the block.

        Raises:
            ModelError: the runtime cannot open the model.
            MeasurementError: the process died or hung.
        """
        with MeasuringProcess(self.subject, sampling.timeout_s) as process:
            self._process = process
            self.opened.append(process.opened)
            yield
            self.memory.append(process.memory())
            if process.largest is not None:
                self.largest.append(process.largest)
        self._process = None

    def warm_up(self, sampling: Sampling, events: EventSink) -> None:
        """Runs the model until the spread settles, see `has_settled`, or the time for that is over.

        A further process of the same model makes as many calls as the first one needed.
        """
        if self.warmup_runs:
            self._sample(self.warmup_runs, min(_REWARM_S, sampling.max_warmup_s))
            return
        samples: list[int] = []
        self.settled = False
        until = time.monotonic() + sampling.max_warmup_s
        while not self.settled and sum(samples) / 1e9 < sampling.max_warmup_s and time.monotonic() < until:
            samples += self._sample(sampling.warmup_window, sampling.max_warmup_s)
            events(Event("progress", stage=STAGE, text="warming up", completed=len(samples), unit="calls"))
            self.settled = has_settled(
                samples, window=sampling.warmup_window, spread=sampling.warmup_spread, drift=sampling.warmup_drift
            )
        self.warmup_runs = len(samples)

    def sample(self, runs: int, seconds: float) -> list[int]:
        """Adds up to `runs` samples, at least one, stopping when `seconds` have passed; returns them, ns."""
        assert self._process is not None
        with self.surroundings.watch(self._process.look):
            samples = self._process.sample(runs, seconds)
        self.samples_ns += samples
        together = self._process.calls_per_sample
        self.calls += len(samples) * together
        self.spent_ns += sum(samples) * together
        self.calls_per_sample = max(self.calls_per_sample, together)
        if self.journal is not None:
            self.journal.add(f"{self.subject.model.path.name}, {self.subject.runtime.name}", samples)
        return samples

    def turn_runs(self) -> int:
        """Returns how many samples make a turn: as many as fill `_TURN_S`, within `_TURN_RUNS`."""
        assert self._process is not None
        fewest, most = _TURN_RUNS
        probe = self._sample(fewest, _TURN_S)
        span_ns = median(probe) * self._process.calls_per_sample
        return min(max(fewest, math.ceil(_TURN_S * 1e9 / span_ns)), most)

    def take_turn(self, runs: int) -> float:
        """Adds one turn's samples and returns their median in ns.

        The turn's first call runs on the other model's caches and is dropped.
        """
        self._sample(1, 0)
        turn: list[int] = []
        while len(turn) < runs:
            turn += self.sample(runs - len(turn), CHUNK_S)
        return median(turn)

    def summarize(self, energy_csv: Path | None = None) -> Measurement:
        """Returns what was measured; of several processes the load is the median and the memory the largest.

        Raises:
            UsageError: the meter's file cannot be read.
        """
        subject, first = self.subject, self.opened[0]
        memory = max(self.memory, key=lambda each: each.peak_bytes)
        largest = max(self.largest, key=lambda each: each.resident_bytes, default=None)
        samples_ms = [sample / 1e6 for sample in self.samples_ns[:: -(-len(self.samples_ns) // _KEPT_SAMPLES)]]
        points = {f"p{percent}_ms": _quantile(samples_ms, percent / 100) for percent in (50, 90, 95, 99)}
        intervals = {
            f"p{percent}_interval_ms": quantile_interval(samples_ms, percent / 100) for percent in (50, 90, 95, 99)
        }
        return Measurement(
            runtime=subject.runtime.name,
            runtime_version=subject.device.version_of(subject.runtime),
            threads=subject.threads,
            batch=subject.scenario.batch,
            length=subject.scenario.length,
            samples_ms=samples_ms,
            calls_per_sample=self.calls_per_sample,
            warmup_runs=self.warmup_runs,
            settled=self.settled,
            **points,
            **intervals,
            mad_ms=median_absolute_deviation(samples_ms),
            outliers=count_outliers(samples_ms),
            rows_per_s=subject.scenario.batch * self.calls / self.seconds,
            load_ms=median(each.load_ms for each in self.opened),
            # a browser starts its peak anew now and then
            peak_rss_bytes=max(memory.peak_bytes, largest.resident_bytes if largest else 0),
            rss_anonymous_bytes=memory.anonymous_bytes,
            rss_file_bytes=memory.file_bytes,
            page_bytes=memory.page_bytes,
            baseline_rss_bytes=first.baseline_bytes,
            library_rss_bytes=first.library_bytes,
            peak_split=split_of(largest),
            memory_limit_bytes=subject.memory_limit_bytes,
            energy=self.surroundings.energy(energy_csv, self.calls),
            load_average=self.load_average,
            conditions=self.surroundings.conditions(subject.device.load_average()),
            pinned_cores=first.cores,
            machine=subject.device.machine(),
            model_digest=subject.model.digest,
            model_bytes=model_bytes(subject.model),
        )

    def _sample(self, runs: int, seconds: float) -> list[int]:
        """Returns samples that are not kept, with an eye on the memory."""
        assert self._process is not None
        return self._process.sample(runs, seconds, watch=True)


def _quantile(samples: list[float], quantile: float) -> float:
    import numpy as np

    return float(np.quantile(samples, quantile))
