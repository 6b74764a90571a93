"""Reads how much energy was spent: RAPL counters of the processor, or the file of a power meter. It never estimates."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from edgekit.errors import UsageError
from edgekit.results import Energy

POWERCAP = Path("/sys/class/powercap")
_PACKAGES = "intel-rapl:?"
"""Whole packages, on AMD's processors too; their parts are named intel-rapl:0:0 and so on."""
_MERGED_S = 0.05
_LEAST_SAMPLES = 3

Windows = Sequence[tuple[float, float]]
"""Begin and end of spans of time, Unix seconds."""


def read_rapl(directory: Path = POWERCAP) -> dict[str, int] | None:
    """Returns the counter of each package, microjoules; None where there is none or it may not be read."""
    try:
        found = {package.name: _number(package / "energy_uj") for package in directory.glob(_PACKAGES)}
    except OSError:
        return None
    return found or None


def rapl_joules(before: dict[str, int], after: dict[str, int], directory: Path = POWERCAP) -> float:
    """Returns the energy between two readings; a counter may have begun anew once."""
    spent = 0
    for name, value in after.items():
        grown = value - before[name]
        spent += grown if grown >= 0 else grown + _number(directory / name / "max_energy_range_uj")
    return spent / 1e6


def why_no_rapl(directory: Path = POWERCAP) -> str:
    """Returns why `read_rapl` gives nothing, as a sentence."""
    packages = list(directory.glob(_PACKAGES))
    if not packages:
        return f"the system has no RAPL counters ({directory}/{_PACKAGES}) and no --energy-csv of a meter was given."
    return (
        f"{packages[0] / 'energy_uj'} may not be read by this user: run as root, or let it be read; or give the "
        "--energy-csv of a meter."
    )


def meter_energy(file: Path, windows: Windows, items: int) -> Energy:
    """Returns the energy within `windows` by the file of a meter, its power taken as linear between its samples.

    Unavailable where the file does not cover them, or has fewer than 3 samples within one of them; windows that follow
    within 50 ms are one.

    Raises:
        UsageError: the file cannot be read, see `read_meter`.
    """
    times, watts = read_meter(file)
    merged = _merge(windows)
    begin, end = merged[0][0], merged[-1][1]
    if len(times) == 0 or times[0] > begin or times[-1] < end:
        covered = f"{_clock(times[0])} to {_clock(times[-1])}" if len(times) else "no time at all"
        return unavailable(f"{file} covers {covered}; the samples were taken from {_clock(begin)} to {_clock(end)}.")
    fewest = min(int(np.sum((times >= low) & (times <= high))) for low, high in merged)
    if fewest < _LEAST_SAMPLES:
        return unavailable(
            f"{file} has {fewest} samples within a span of sampling, expected at least {_LEAST_SAMPLES}: use a meter "
            "that samples more often, or measure one model alone and for longer."
        )
    joules = sum(_integrate(times, watts, low, high) for low, high in merged)
    return spent("meter", joules, sum(high - low for low, high in merged), items)


def spent(source: str, joules: float, seconds: float, items: int) -> Energy:
    """Returns energy that was measured, over `items` calls or tokens."""
    return Energy.model_validate(
        {"source": source, "joules": joules, "seconds": seconds, "joules_per_item": joules / items}
    )


def unavailable(reason: str) -> Energy:
    """Returns that there is no figure, and why."""
    return Energy(source="unavailable", reason=reason)


def read_meter(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns times (Unix seconds, rising) and watts of a CSV file with the columns `time` and `watts`, (N,) each.

    A time is Unix seconds or ISO 8601 with an offset. Other columns are ignored.

    Raises:
        UsageError: it cannot be read, lacks a column, or holds something else.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = {"time", "watts"} - set(reader.fieldnames or [])
            if missing:
                found = ", ".join(reader.fieldnames or []) or "no line"
                raise UsageError(f"{file}: found {found}, expected the columns time, watts. Name them so.")
            rows = [_sample(row, file, number) for number, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error}). Expected a CSV file with time and watts.") from error
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    if (np.diff(values[:, 0]) <= 0).any():
        raise UsageError(f"{file}: found times that do not rise, expected each sample later than the one before.")
    return values[:, 0], values[:, 1]


def _sample(row: dict[str, str], file: Path, number: int) -> tuple[float, float]:
    try:
        return _seconds(row["time"]), float(row["watts"])
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{file}, line {number}: found time {row.get('time')!r} and watts {row.get('watts')!r}, expected Unix "
            "seconds or ISO 8601 with an offset, and a number."
        ) from error


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no offset")
    return moment.timestamp()


def _merge(windows: Windows) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for low, high in windows:
        if merged and low - merged[-1][1] <= _MERGED_S:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return merged


def _integrate(times: np.ndarray, watts: np.ndarray, low: float, high: float) -> float:
    within = times[(times > low) & (times < high)]
    points = np.concatenate([[low], within, [high]])
    return float(np.trapezoid(np.interp(points, times, watts), points))


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
