"""Classifiers that were measured in turn, as words: a row for each, compared with the first."""

from __future__ import annotations

from edgekit.reporting import speed, wording
from edgekit.results import Sweep, TurnRatio

COLUMNS = ("", "p50", "p95", "time of\na call", "peak memory", "model files", "load")


def rows(sweep: Sweep) -> list[list[str]]:
    """Returns the cells of `COLUMNS` for each model."""
    ratios = {ratio.measurement: ratio for ratio in sweep.ratios}
    return [
        [
            name.replace(", ", "\n", 1),
            f"{wording.milliseconds(entry.p50_ms)}\n{wording.number_range(entry.p50_interval_ms)}",
            wording.milliseconds(entry.p95_ms),
            _against_first(place, ratios.get(place)),
            wording.mebibytes(entry.peak_rss_bytes),
            wording.mebibytes(entry.model_bytes),
            wording.milliseconds(entry.load_ms),
        ]
        for place, (name, entry) in enumerate(zip(sweep.names, sweep.measurements, strict=True))
    ]


def conditions(sweep: Sweep) -> str:
    """Returns in one line how it was measured: rounds, scenario, machine."""
    first = sweep.measurements[0]
    return (
        f"{sweep.rounds} rounds in turn in {sweep.sets} fresh sets of processes, {first.batch} {wording.TIMES} "
        f"{first.length} tokens; load average {first.load_average:.2f}; {wording.machine(first.machine)}"
    )


def _against_first(place: int, ratio: TurnRatio | None) -> str:
    """Returns how much longer a call takes than the first model's."""
    if place == 0:
        return f"1{wording.TIMES}"
    if ratio is None:
        return ""
    interval = wording.number_range(ratio.ratio_interval)
    return f"{wording.times(ratio.ratio_p50)}\n{interval}\n{speed.AGAINST_IT[ratio.verdict]}"
