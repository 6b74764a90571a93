"""Measures latency and memory: one model alone, or two that take turns in one run.

Every model runs in fresh processes of its own (`process.py`, `series.py`); this module decides how often. What a
number is good enough for is not known here.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

from edgekit.benchmarking.machine import usable_cores
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.series import CHUNK_S, STAGE, Sampling, Series
from edgekit.benchmarking.statistics import effective_samples, quantile_interval, samples_needed
from edgekit.benchmarking.verdict import judge, paired_ratio
from edgekit.errors import UsageError
from edgekit.events import Event, EventSink
from edgekit.results import Comparison, Interval, Measurement

MIN_ROUNDS = 12
DECISION_CONFIDENCE = 0.99
_ORDERS = ((0, 1), (1, 0))
_MANY = 1_000_000


def measure(subject: Subject, sampling: Sampling, events: EventSink) -> Measurement:
    """Measures one model alone, in one process.

    Raises:
        UsageError: more threads than cores.
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    require_cores(subject)
    series = Series(subject)
    with series.open(sampling):
        series.warm_up(sampling, events)
        while not _is_enough(series, sampling):
            series.sample(_MANY, _chunk_seconds(series, sampling))
            _report(events, "sampling", series, sampling)
    return series.summarize(sampling.energy_csv)


def compare(first: Subject, second: Subject, sampling: Sampling, *, seed: int, events: EventSink) -> Comparison:
    """Measures two models that take turns, in the order A B, B A, A B ..., so that a drift of the machine cancels out.

    Both run in `sampling.pairs` fresh pairs of processes, one pair after another. One round is one turn each; a pair's
    ratio is the median over its rounds of p50(second) / p50(first), and whole pairs are what the interval draws. More
    pairs follow until the interval is as narrow as asked. That looks at its width alone, never at the verdict, so that
    looking again favours none. A p95 limit to decide is decided for the first.

    Raises:
        UsageError: more threads than cores.
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    require_cores(first)
    require_cores(second)
    pair = (Series(first), Series(second))
    blocks: list[list[float]] = []
    while len(blocks) < sampling.pairs or not _is_told(pair, blocks, sampling, seed):
        blocks.append(_take_block(pair, sampling, _ORDERS[len(blocks) % 2], events))
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
    """Refuses more threads than this process has cores.

    Raises:
        UsageError: there are fewer.
    """
    cores = len(usable_cores())
    if 0 < cores < subject.threads:
        raise UsageError(
            f"threads: found {subject.threads}, expected at most {cores}, the cores that this process may use: "
            "threads that wait for a core would be measured, not the model."
        )


def _take_block(
    pair: tuple[Series, Series], sampling: Sampling, opening: tuple[int, int], events: EventSink
) -> list[float]:
    """Returns the ratios of the rounds of one fresh pair of processes; `opening` is the order in which they start."""
    least = [len(each.samples_ns) + math.ceil(sampling.min_samples / sampling.pairs) for each in pair]
    until = [each.seconds + sampling.min_seconds / sampling.pairs for each in pair]
    ratios: list[float] = []
    with ExitStack() as stack:
        for place in opening:
            stack.enter_context(pair[place].open(sampling))
        for place in opening:
            pair[place].warm_up(sampling, events)
        runs = [series.turn_runs() for series in pair]
        while (
            len(ratios) * sampling.pairs < MIN_ROUNDS
            or any(len(each.samples_ns) < count for each, count in zip(pair, least, strict=True))
            or any(each.seconds < seconds for each, seconds in zip(pair, until, strict=True))
        ):
            for order in _ORDERS:
                medians = [0.0, 0.0]
                for turn in order:
                    medians[turn] = pair[turn].take_turn(runs[turn])
                ratios.append(medians[1] / medians[0])
            _report(events, "taking turns", min(pair, key=lambda series: series.seconds), sampling)
    return ratios


def _is_told(pair: tuple[Series, Series], blocks: list[list[float]], sampling: Sampling, seed: int) -> bool:
    """Returns True when nothing that was asked beyond the least is open, or the time for it is over."""
    if min(series.seconds for series in pair) >= sampling.max_seconds:
        return True
    if sampling.interval_width is not None:
        ratio, interval = paired_ratio(blocks, seed=seed)
        if not is_narrow(interval, ratio, sampling.interval_width):
            return False
    return sampling.decide_p95_ms is None or _is_decided(pair[0].samples_ns, sampling.decide_p95_ms * 1e6)


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
    return sampling.decide_p95_ms is None or _is_decided(series.samples_ns, sampling.decide_p95_ms * 1e6)


def is_narrow(interval: Interval, value: float, width: float) -> bool:
    """Returns whether an interval is at most `width` of `value` wide."""
    return interval.high - interval.low <= width * value


def _is_decided(samples_ns: list[int], limit_ns: float) -> bool:
    """Returns True when p95 clears the limit at `DECISION_CONFIDENCE`.

    It looks again and again while samples come in, which favours chance; hence more confidence than is reported.
    """
    interval = quantile_interval(samples_ns, 0.95, DECISION_CONFIDENCE)
    if interval.low > limit_ns:
        return True
    bounded = effective_samples(samples_ns, 0.95) >= samples_needed(0.95, DECISION_CONFIDENCE)
    return bounded and interval.high < limit_ns


def _chunk_seconds(series: Series, sampling: Sampling) -> float:
    """Returns how long to sample before the next look: what is missing, in parts; then a third more each time."""
    missing = sampling.min_seconds - series.seconds
    if missing > 0:
        return min(CHUNK_S, missing)
    return max(CHUNK_S, series.seconds / 3) if len(series.samples_ns) >= sampling.min_samples else CHUNK_S


def _report(events: EventSink, text: str, series: Series, sampling: Sampling) -> None:
    done = min(len(series.samples_ns) / sampling.min_samples, series.seconds / max(sampling.min_seconds, 1e-9), 1.0)
    events(Event("progress", stage=STAGE, text=text, completed=round(100 * done), total=100, unit="%"))
