"""Measures latency and memory: one model alone, or two that take turns in one run.

Every model runs in a fresh process of its own (`process.py`); this module decides how often, and sums up. What a
number is good enough for is not known here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgekit.benchmarking.machine import load_average, machine_fingerprint, usable_cores
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.statistics import (
    effective_samples,
    has_settled,
    median_ratio,
    quantile_interval,
    samples_needed,
)
from edgekit.errors import UsageError
from edgekit.events import Event, EventSink
from edgekit.results import Comparison, Measurement
from edgekit.runtimes.protocol import model_bytes

STAGE = "bench"
MIN_ROUNDS = 12
DECISION_CONFIDENCE = 0.99
_CHUNK_S = 0.5
_TURN_S = 0.15
_TURN_RUNS = (3, 1000)
_KEPT_SAMPLES = 10_000
_MANY = 1_000_000


@dataclass(frozen=True)
class Sampling:
    """How much to sample."""

    min_samples: int = 30
    """Samples at least."""
    min_seconds: float = 3.0
    """Seconds of sampling at least."""
    decide_p95_ms: float | None = None
    """A limit for p95: sampling goes on until the interval clears it, or `max_seconds` have passed."""
    max_seconds: float = 30.0
    """Seconds of sampling at most when a limit is to be decided."""
    timeout_s: float = 120.0
    """Seconds that one call, or the load, may take before the process counts as hung."""
    warmup_window: int = 10
    """Calls in each of the two windows that the warm-up compares."""
    warmup_spread: float = 0.05
    """Largest quartile coefficient of the last window."""
    warmup_drift: float = 0.03
    """Largest relative difference of the two windows' medians."""
    max_warmup_s: float = 10.0
    """Seconds after which sampling begins although the spread has not settled."""


@dataclass
class _Series:
    """The samples of one process."""

    process: MeasuringProcess
    warmup_runs: int
    settled: bool
    samples_ns: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(self.samples_ns) / 1e9


def measure(subject: Subject, sampling: Sampling, events: EventSink) -> Measurement:
    """Measures one model alone.

    Raises:
        UsageError: more threads than cores.
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    _require_cores(subject)
    load = load_average()
    with MeasuringProcess(subject, sampling.timeout_s) as process:
        series = _warm_up(process, sampling, events)
        while not _is_enough(series, sampling):
            series.samples_ns += process.sample(_MANY, _chunk_seconds(series, sampling))
            _report(events, "sampling", series, sampling)
        return _summarize(series, load)


def compare(first: Subject, second: Subject, sampling: Sampling, *, seed: int, events: EventSink) -> Comparison:
    """Measures two models that take turns, in the order A B, B A, A B ..., so that a drift of the machine cancels out.

    One round is one turn each; the ratio is the median over rounds of p50(second) / p50(first). The first call of a
    turn runs on the other's caches and is dropped. A limit to decide is decided for the first.

    Raises:
        UsageError: more threads than cores.
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    _require_cores(first)
    _require_cores(second)
    load = load_average()
    ratios: list[float] = []
    with MeasuringProcess(first, sampling.timeout_s) as a, MeasuringProcess(second, sampling.timeout_s) as b:
        pair = (_warm_up(a, sampling, events), _warm_up(b, sampling, events))
        runs = [_turn_runs(series) for series in pair]
        while len(ratios) < MIN_ROUNDS or not all(_is_enough(*each) for each in _demands(pair, sampling)):
            medians = [0.0, 0.0]
            for turn in (0, 1) if len(ratios) % 2 == 0 else (1, 0):
                medians[turn] = _take_turn(pair[turn], runs[turn])
            ratios.append(medians[1] / medians[0])
            _report(events, "taking turns", min(pair, key=lambda series: series.seconds), sampling)
        ratio, interval = median_ratio(ratios, seed=seed)
        measured = [_summarize(series, load) for series in pair]
    return Comparison(
        first=measured[0], second=measured[1], ratio_p50=ratio, ratio_interval=interval, rounds=len(ratios)
    )


def _require_cores(subject: Subject) -> None:
    cores = len(usable_cores())
    if 0 < cores < subject.threads:
        raise UsageError(
            f"threads: found {subject.threads}, expected at most {cores}, the cores that this process may use: "
            "threads that wait for a core would be measured, not the model."
        )


def _warm_up(process: MeasuringProcess, sampling: Sampling, events: EventSink) -> _Series:
    """Runs the model until the spread settles, see `has_settled`, or the time for that is over."""
    samples: list[int] = []
    settled = False
    while not settled and sum(samples) / 1e9 < sampling.max_warmup_s:
        samples += process.sample(sampling.warmup_window, sampling.max_warmup_s)
        events(Event("progress", stage=STAGE, text="warming up", completed=len(samples), unit="calls"))
        settled = has_settled(
            samples, window=sampling.warmup_window, spread=sampling.warmup_spread, drift=sampling.warmup_drift
        )
    return _Series(process, len(samples), settled)


def _turn_runs(series: _Series) -> int:
    """Returns how many calls make a turn: as many as fill `_TURN_S`, within `_TURN_RUNS`."""
    fewest, most = _TURN_RUNS
    probe = series.process.sample(fewest, _TURN_S)
    return min(max(fewest, math.ceil(_TURN_S * 1e9 / _median(probe))), most)


def _take_turn(series: _Series, runs: int) -> float:
    """Adds one turn's samples to the series and returns their median in ns."""
    series.process.sample(1, 0)
    turn: list[int] = []
    while len(turn) < runs:
        turn += series.process.sample(runs - len(turn), _CHUNK_S)
    series.samples_ns += turn
    return _median(turn)


def _demands(pair: tuple[_Series, _Series], sampling: Sampling) -> tuple[tuple[_Series, Sampling], ...]:
    """Returns each series with what is asked of it: a limit concerns the first only."""
    return (pair[0], sampling), (pair[1], Sampling(sampling.min_samples, sampling.min_seconds))


def _is_enough(series: _Series, sampling: Sampling) -> bool:
    """Returns True when the series has its samples and seconds, and a limit to decide is decided or given up."""
    if len(series.samples_ns) < sampling.min_samples or series.seconds < sampling.min_seconds:
        return False
    if sampling.decide_p95_ms is None or series.seconds >= sampling.max_seconds:
        return True
    return _is_decided(series.samples_ns, sampling.decide_p95_ms * 1e6)


def _is_decided(samples_ns: list[int], limit_ns: float) -> bool:
    """Returns True when p95 clears the limit at `DECISION_CONFIDENCE`.

    It looks again and again while samples come in, which favours chance; hence more confidence than is reported.
    """
    interval = quantile_interval(samples_ns, 0.95, DECISION_CONFIDENCE)
    if interval.low > limit_ns:
        return True
    bounded = effective_samples(samples_ns, 0.95) >= samples_needed(0.95, DECISION_CONFIDENCE)
    return bounded and interval.high < limit_ns


def _chunk_seconds(series: _Series, sampling: Sampling) -> float:
    """Returns how long to sample before the next look: what is missing, in parts; then a third more each time."""
    missing = sampling.min_seconds - series.seconds
    if missing > 0:
        return min(_CHUNK_S, missing)
    return max(_CHUNK_S, series.seconds / 3) if len(series.samples_ns) >= sampling.min_samples else _CHUNK_S


def _report(events: EventSink, text: str, series: _Series, sampling: Sampling) -> None:
    done = min(len(series.samples_ns) / sampling.min_samples, series.seconds / max(sampling.min_seconds, 1e-9), 1.0)
    events(Event("progress", stage=STAGE, text=text, completed=round(100 * done), total=100, unit="%"))


def _summarize(series: _Series, load: float) -> Measurement:
    subject, opened = series.process.subject, series.process.opened
    memory = series.process.memory()
    samples_ms = [sample / 1e6 for sample in series.samples_ns[:: -(-len(series.samples_ns) // _KEPT_SAMPLES)]]
    points = {f"p{percent}_ms": _quantile(samples_ms, percent / 100) for percent in (50, 90, 95, 99)}
    intervals = {
        f"p{percent}_interval_ms": quantile_interval(samples_ms, percent / 100) for percent in (50, 90, 95, 99)
    }
    return Measurement(
        runtime=subject.runtime.name,
        runtime_version=subject.runtime.version(),
        threads=subject.threads,
        batch=subject.scenario.batch,
        length=subject.scenario.length,
        samples_ms=samples_ms,
        warmup_runs=series.warmup_runs,
        settled=series.settled,
        **points,
        **intervals,
        rows_per_s=subject.scenario.batch * len(series.samples_ns) / series.seconds,
        load_ms=opened.load_ms,
        peak_rss_bytes=memory.peak_bytes,
        rss_anonymous_bytes=memory.anonymous_bytes,
        rss_file_bytes=memory.file_bytes,
        baseline_rss_bytes=opened.baseline_bytes,
        library_rss_bytes=opened.library_bytes,
        load_average=load,
        pinned_cores=opened.cores,
        machine=machine_fingerprint(),
        model_digest=subject.model.digest,
        model_bytes=model_bytes(subject.model),
    )


def _quantile(samples: list[float], quantile: float) -> float:
    import numpy as np

    return float(np.quantile(samples, quantile))


def _median(samples: list[int]) -> float:
    return _quantile([float(sample) for sample in samples], 0.5)
