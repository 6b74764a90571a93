"""Measures any number of classifiers, runtimes or numbers of threads that take turns in one run: `turns.take_turns`."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.benchmarking.harness import require_cores
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.series import Sampling, Series
from edgekit.benchmarking.turns import Rounds, ratios_to_first, take_turns
from edgekit.benchmarking.verdict import judge, paired_ratio
from edgekit.events import EventSink
from edgekit.results import Sweep, TurnRatio


def measure_in_turn(
    subjects: Sequence[Subject], names: Sequence[str], sampling: Sampling, *, seed: int, events: EventSink
) -> Sweep:
    """Measures `subjects`, called `names`, in fresh sets of processes; all of a set are open at once.

    The others are compared with the first.

    Raises:
        UsageError: more threads than cores.
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    for subject in subjects:
        require_cores(subject)
    series = [Series(subject, sampling.journal) for subject in subjects]
    sets = take_turns(series, sampling, seed=seed, events=events)
    return Sweep(
        names=list(names),
        measurements=[each.summarize(sampling.energy_csv) for each in series],
        ratios=[_against_first(sets, place, sampling.margin, seed) for place in range(1, len(series))],
        rounds=sum(map(len, sets)),
        sets=len(sets),
    )


def _against_first(sets: Sequence[Rounds], place: int, margin: float, seed: int) -> TurnRatio:
    ratio, interval = paired_ratio(ratios_to_first(sets, place), seed=seed)
    return TurnRatio(
        measurement=place, ratio_p50=ratio, ratio_interval=interval, margin=margin, verdict=judge(interval, margin)
    )
