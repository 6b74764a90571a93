"""What a model takes besides time, as words: what its memory is made of, the least it runs in, and energy."""

from __future__ import annotations

from edgekit.reporting import wording
from edgekit.results import AnyMeasurement, Energy, GenerationMeasurement, Measurement

_SOURCES = {"rapl": "processor, RAPL", "meter": "device, meter"}


def rows(measurements: list[AnyMeasurement]) -> list[tuple[str, list[str]]]:
    """Returns the figures of several measurements, each with its title and one text a measurement."""
    found = [("anonymous + file + shared", [_split(entry) for entry in measurements])]
    pages = [entry.page_bytes if isinstance(entry, Measurement) else None for entry in measurements]
    if any(page is not None for page in pages):
        found.append(("the page itself, as the browser counts", [_told(page) for page in pages]))
    if any(entry.memory_limit_bytes is not None for entry in measurements):
        found.append(("memory limit", [_told(entry.memory_limit_bytes) for entry in measurements]))
    if any(entry.smallest_memory is not None for entry in measurements):
        found.append(("smallest memory limit", [_smallest(entry) for entry in measurements]))
    return [*found, ("energy", [energy(entry) for entry in measurements])]


def energy(measurement: AnyMeasurement) -> str:
    """Returns what a call or a token cost, or why that is unavailable."""
    found: Energy | None = measurement.energy
    if found is None:
        return ""
    if found.joules is None or found.seconds is None or found.joules_per_item is None:
        return f"unavailable: {found.reason}"
    item = "token" if isinstance(measurement, GenerationMeasurement) else "call"
    watts = wording.number(found.joules / found.seconds)
    return f"{wording.number(1e3 * found.joules_per_item)} mJ a {item}, {watts} W ({_SOURCES[found.source]})"


def _split(measurement: AnyMeasurement) -> str:
    """Returns what the memory was made of at its largest moment that was seen; of older files, at the end."""
    split = measurement.peak_split
    if split is None:
        parts = [measurement.rss_anonymous_bytes, measurement.rss_file_bytes]
    else:
        parts = [split.anonymous_bytes, split.file_bytes, split.shared_bytes]
    return " + ".join(wording.mebibytes(part) for part in parts)


def _told(size: int | None) -> str:
    return "" if size is None else wording.mebibytes(size)


def _smallest(measurement: AnyMeasurement) -> str:
    found = measurement.smallest_memory
    if found is None:
        return ""
    failed = [trial.limit_bytes for trial in found.trials if not trial.runs]
    below = f", not in {wording.mebibytes(max(failed))}" if failed else ""
    return f"{wording.mebibytes(found.smallest_bytes)}{below}"
