"""Measures latency and memory: one model alone, or two that take turns in one run.

Every model runs in fresh processes of its own (`process.py`, `series.py`); this module decides how often. What a
number is good enough for is not known here.
"""

from __future__ import annotations

from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.series import CHUNK_S, Sampling, Series
from edgekit.benchmarking.statistics import quantile_interval
from edgekit.benchmarking.turns import is_decided, is_narrow, ratios_to_first, report_progress, take_turns
from edgekit.benchmarking.verdict import judge, paired_ratio
from edgekit.errors import UsageError
from edgekit.events import EventSink
from edgekit.results import Comparison, Measurement

_MANY = 1_000_000


def measure(subject: Subject, sampling: Sampling, events: EventSink) -> Measurement:
    """Measures one model alone, in one process.

    Raises:
        UsageError: more threads than cores.
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    require_cores(subject)
    series = Series(subject, sampling.journal)
    with series.open(sampling):
        series.warm_up(sampling, events)
        while not _is_enough(series, sampling):
            series.sample(_MANY, _chunk_seconds(series, sampling))
            report_progress(events, "sampling", series, sampling)
    return series.summarize(sampling.energy_csv)


def compare(first: Subject, second: Subject, sampling: Sampling, *, seed: int, events: EventSink) -> Comparison:
    """Measures two models that take turns in fresh pairs of processes, see `turns.take_turns`.

    A pair's ratio is the median over its rounds of p50(second) / p50(first), and whole pairs are what the interval
    draws.

    Raises:
        UsageError: more threads than cores.
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    require_cores(first)
    require_cores(second)
    pair = (Series(first, sampling.journal), Series(second, sampling.journal))
    blocks = ratios_to_first(take_turns(pair, sampling, seed=seed, events=events), 1)
    ratio, interval = paired_ratio(blocks, seed=seed)
    return Comparison(
        first=pair[0].summarize(sampling.energy_csv),
        second=pair[1].summarize(sampling.energy_csv),
        ratio_p50=ratio,
        ratio_interval=interval,
        rounds=sum(map(len, blocks)),
        pair_ratios=[paired_ratio([block], seed=seed)[0] for block in blocks],
        margin=sampling.margin,
        verdict=judge(interval, sampling.margin),
    )


def require_cores(subject: Subject) -> None:
    """Refuses more threads than there are cores where the model runs.

    Raises:
        UsageError: there are fewer.
    """
    cores = subject.device.core_count()
    if 0 < cores < subject.threads:
        where = "this process may use" if subject.device.is_here else f"{subject.device.name} has"
        raise UsageError(
            f"threads: found {subject.threads}, expected at most {cores}, the cores that {where}: "
            "threads that wait for a core would be measured, not the model."
        )


def _is_enough(series: Series, sampling: Sampling) -> bool:
    """Returns True when the series has its samples and seconds, and what is to be decided is decided or given up."""
    if len(series.samples_ns) < sampling.min_samples or series.seconds < sampling.min_seconds:
        return False
    if series.seconds >= sampling.max_seconds:
        return True
    if sampling.interval_width is not None:
        interval = quantile_interval(series.samples_ns, 0.5)
        if not is_narrow(interval, (interval.low + interval.high) / 2, sampling.interval_width):
            return False
    return sampling.decide_p95_ms is None or is_decided(series.samples_ns, sampling.decide_p95_ms)


def _chunk_seconds(series: Series, sampling: Sampling) -> float:
    """Returns how long to sample before the next look: what is missing, in parts; then a third more each time."""
    missing = sampling.min_seconds - series.seconds
    if missing > 0:
        return min(CHUNK_S, missing)
    return max(CHUNK_S, series.seconds / 3) if len(series.samples_ns) >= sampling.min_samples else CHUNK_S
