"""Two or more classifiers that take turns: fresh sets of processes, and in each of them rounds of one turn each.

The order is turned round from round to round (A B, B A, A B ...), and from set to set for who starts first, so that a
drift of the machine cancels out. What is compared are the medians of turns of one round; what an interval draws are
whole sets, since processes of one model differ from each other more than turns of one process do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

from edgekit.benchmarking.series import STAGE, Sampling, Series
from edgekit.benchmarking.statistics import effective_samples, quantile_interval, samples_needed
from edgekit.benchmarking.verdict import paired_ratio
from edgekit.events import Event, EventSink
from edgekit.results import Interval

MIN_ROUNDS = 12
DECISION_CONFIDENCE = 0.99

Rounds = list[list[float]]
"""Of one set of processes: for each round the median of each model's turn, in ns."""


def take_turns(series: Sequence[Series], sampling: Sampling, *, seed: int, events: EventSink) -> list[Rounds]:
    """Samples every series in `sampling.pairs` fresh sets of processes, and in more until nothing asked for is open.

    More sets follow until every interval of a ratio to the first is as narrow as asked, and a p95 limit to decide is
    decided for the first. That looks at widths alone, never at a verdict, so that looking again favours none.

    Raises:
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    sets: list[Rounds] = []
    while len(sets) < sampling.pairs or not _is_told(series, sets, sampling, seed):
        order = list(range(len(series)))
        sets.append(_take_set(series, sampling, order if len(sets) % 2 == 0 else order[::-1], events))
    return sets


def ratios_to_first(sets: Sequence[Rounds], place: int) -> list[list[float]]:
    """Returns for each set, round by round, the median of the model in `place` over that of the first."""
    return [[medians[place] / medians[0] for medians in rounds] for rounds in sets]


def is_narrow(interval: Interval, value: float, width: float) -> bool:
    """Returns whether an interval is at most `width` of `value` wide."""
    return interval.high - interval.low <= width * value


def is_decided(samples_ns: list[int], limit_ms: float) -> bool:
    """Returns True when p95 clears the limit at `DECISION_CONFIDENCE`.

    It looks again and again while samples come in, which favours chance; hence more confidence than is reported.
    """
    interval, limit_ns = quantile_interval(samples_ns, 0.95, DECISION_CONFIDENCE), limit_ms * 1e6
    if interval.low > limit_ns:
        return True
    bounded = effective_samples(samples_ns, 0.95) >= samples_needed(0.95, DECISION_CONFIDENCE)
    return bounded and interval.high < limit_ns


def report_progress(events: EventSink, text: str, series: Series, sampling: Sampling) -> None:
    """Tells which share of the samples and seconds that are asked for at least a series has."""
    done = min(len(series.samples_ns) / sampling.min_samples, series.seconds / max(sampling.min_seconds, 1e-9), 1.0)
    events(Event("progress", stage=STAGE, text=text, completed=round(100 * done), total=100, unit="%"))


def _take_set(series: Sequence[Series], sampling: Sampling, order: list[int], events: EventSink) -> Rounds:
    """Returns the rounds of one fresh set of processes, started in `order`."""
    least = [len(each.samples_ns) + math.ceil(sampling.min_samples / sampling.pairs) for each in series]
    until = [each.seconds + sampling.min_seconds / sampling.pairs for each in series]
    rounds: Rounds = []
    with ExitStack() as stack:
        for place in order:
            stack.enter_context(series[place].open(sampling))
        for place in order:
            series[place].warm_up(sampling, events)
        runs = [each.turn_runs() for each in series]
        while (
            len(rounds) * sampling.pairs < MIN_ROUNDS
            or any(len(each.samples_ns) < count for each, count in zip(series, least, strict=True))
            or any(each.seconds < seconds for each, seconds in zip(series, until, strict=True))
        ):
            for turns in (order, order[::-1]):
                medians = [0.0] * len(series)
                for place in turns:
                    medians[place] = series[place].take_turn(runs[place])
                rounds.append(medians)
            report_progress(events, "taking turns", min(series, key=lambda each: each.seconds), sampling)
    return rounds


def _is_told(series: Sequence[Series], sets: Sequence[Rounds], sampling: Sampling, seed: int) -> bool:
    """Returns True when nothing that was asked beyond the least is open, or the time for it is over."""
    if min(each.seconds for each in series) >= sampling.max_seconds:
        return True
    if sampling.interval_width is not None:
        for place in range(1, len(series)):
            ratio, interval = paired_ratio(ratios_to_first(sets, place), seed=seed)
            if not is_narrow(interval, ratio, sampling.interval_width):
                return False
    return sampling.decide_p95_ms is None or is_decided(series[0].samples_ns, sampling.decide_p95_ms)
