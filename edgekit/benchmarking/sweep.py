"""Measures any number of classifiers, runtimes or numbers of threads that take turns in one run.

As `harness.compare` does with two: fresh sets of processes, in each of them rounds of one turn each, in an order that
is turned round from round to round. The others are compared with the first, round by round; whole sets are what an
interval draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

from edgekit.benchmarking.harness import MIN_ROUNDS, is_narrow, require_cores
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.series import STAGE, Sampling, Series
from edgekit.benchmarking.verdict import judge, paired_ratio
from edgekit.events import Event, EventSink
from edgekit.results import Sweep, TurnRatio


def measure_in_turn(
    subjects: Sequence[Subject], names: Sequence[str], sampling: Sampling, *, seed: int, events: EventSink
) -> Sweep:
    """Measures `subjects`, called `names`, in `sampling.pairs` fresh sets of processes; all are open at once.

    More sets follow until every interval is as narrow as asked; that looks at widths alone, so that looking again
    favours none.

    Raises:
        UsageError: more threads than cores.
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    for subject in subjects:
        require_cores(subject)
    series = [Series(subject) for subject in subjects]
    sets: list[list[list[float]]] = []
    while len(sets) < sampling.pairs or not _is_told(series, sets, sampling, seed):
        order = range(len(series)) if len(sets) % 2 == 0 else range(len(series))[::-1]
        sets.append(_take_set(series, sampling, list(order), events))
        total = max(len(sets), sampling.pairs)
        events(Event("progress", stage=STAGE, text="taking turns", completed=len(sets), total=total, unit="sets"))
    return Sweep(
        names=list(names),
        measurements=[each.summarize(sampling.energy_csv) for each in series],
        ratios=[_against_first(sets, place, sampling.margin, seed) for place in range(1, len(series))],
        rounds=sum(map(len, sets)),
        sets=len(sets),
    )


def _take_set(series: Sequence[Series], sampling: Sampling, order: list[int], events: EventSink) -> list[list[float]]:
    """Returns the medians (ns) of each round's turns, of one fresh set of processes opened in `order`."""
    least = [len(each.samples_ns) + math.ceil(sampling.min_samples / sampling.pairs) for each in series]
    until = [each.seconds + sampling.min_seconds / sampling.pairs for each in series]
    rounds: list[list[float]] = []
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
            medians = [0.0] * len(series)
            for place in order if len(rounds) % 2 == 0 else reversed(order):
                medians[place] = series[place].take_turn(runs[place])
            rounds.append(medians)
    return rounds


def _is_told(series: Sequence[Series], sets: list[list[list[float]]], sampling: Sampling, seed: int) -> bool:
    """Returns True when every interval is as narrow as asked, or the time for it is over."""
    if sampling.interval_width is None or min(each.seconds for each in series) >= sampling.max_seconds:
        return True
    found = [_against_first(sets, place, sampling.margin, seed) for place in range(1, len(series))]
    return all(is_narrow(each.ratio_interval, each.ratio_p50, sampling.interval_width) for each in found)


def _against_first(sets: list[list[list[float]]], place: int, margin: float, seed: int) -> TurnRatio:
    blocks = [[medians[place] / medians[0] for medians in rounds] for rounds in sets]
    ratio, interval = paired_ratio(blocks, seed=seed)
    return TurnRatio(
        measurement=place, ratio_p50=ratio, ratio_interval=interval, margin=margin, verdict=judge(interval, margin)
    )
