"""Compares two saved results, measurements or builds: what was set otherwise, and how the figures changed.

The two were measured apart. So their intervals add up, the margin for speeds is wider than in one run, and nothing is
judged of speeds that a busy machine spoilt; which ones these are the caller says. Files are the matter of `saved.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from pydantic import JsonValue

from edgekit.benchmarking.verdict import (
    independent_difference_interval,
    independent_ratio_interval,
    judge,
    judge_difference,
)
from edgekit.results import (
    AnyMeasurement,
    AnyQuality,
    BuildResult,
    Change,
    Changes,
    ExportResult,
    GenerationMeasurement,
    Interval,
    Measurement,
    Result,
    SettingChange,
)
from edgekit.results.changes import Unit

APART_MARGIN = 0.1
"""Differences of speed up to this share do not count, of models that were measured in two runs."""
MARGINS: dict[Unit, float] = {"bytes": 0.01, "accuracy": 0.005, "perplexity": 0.01}
MEMORY_MARGIN = 0.05
_HIGHER_IS_BETTER: frozenset[Unit] = frozenset({"tokens/s", "accuracy"})
_SCENARIO = ("batch", "length", "context_tokens", "new_tokens")
_CHOSEN = {"runtime", "runtime_version", "threads", "model_digest"}
_CHOSEN_IN_BUILDS = {"edgekit_version", "seed", "recipe"}
_APART = (
    "The two were measured apart: what the machine did otherwise between them is in no interval. "
    "`edgekit bench NEW --compare OLD` measures both in turn."
)

Saved = BuildResult | AnyMeasurement
Doubts = Callable[[AnyMeasurement], str]
"""Says in a sentence why a measurement's speed is doubtful; empty where it is not."""


@dataclass(frozen=True)
class Named:
    """A saved result with what it is called."""

    name: str
    result: Saved


@dataclass(frozen=True)
class _Judging:
    """How speeds are judged, and what was noted meanwhile."""

    margin: float
    doubts: Doubts
    notes: list[str]


def obstacles(before: Saved, after: Saved) -> list[str]:
    """Returns why two results say nothing about each other: other machines, other work; empty when they do."""
    if type(before) is not type(after):
        return [f"found {_kind(before)} and {_kind(after)}, expected two of a kind"]
    found = [_differing("machine", *pair) for pair in _machines(before, after)]
    found += [_differing("scenario", _scenario(one), _scenario(other)) for one, other in _measured(before, after)]
    return [reason for reason in dict.fromkeys(found) if reason]


def compare_saved(before: Named, after: Named, *, margin: float, doubts: Doubts) -> Changes:
    """Returns what changed; speeds of doubtful measurements are inconclusive.

    `margin` is for speeds; the others are in `MARGINS`. Both results must be of one kind, see `obstacles`.
    """
    old, new = before.result, after.result
    judging = _Judging(margin, doubts, notes := [])
    if isinstance(old, BuildResult) and isinstance(new, BuildResult):
        figures = list(_build_figures(old, new, judging))
        settings = _flat_changes(old.model_dump(include=_CHOSEN_IN_BUILDS), new.model_dump(include=_CHOSEN_IN_BUILDS))
    else:
        assert not isinstance(old, BuildResult)
        assert not isinstance(new, BuildResult)
        figures = _measured_figures("", old, new, judging)
        settings = _flat_changes(old.model_dump(include=_CHOSEN), new.model_dump(include=_CHOSEN))
    if any(figure.unit in ("ms", "tokens/s") for figure in figures):
        notes.append(_APART)
    return Changes(before=before.name, after=after.name, settings=settings, figures=figures, notes=notes)


def _build_figures(old: BuildResult, new: BuildResult, judging: _Judging) -> Iterator[Change]:
    known = {(export.format, export.target): export for export in old.exports}
    for export in new.exports:
        earlier = known.pop((export.format, export.target), None)
        of = f"{export.format} for {export.target}"
        if earlier is None:
            judging.notes.append(f"{of}: only the later build has it.")
            continue
        yield _sized(of, "model files", earlier.bytes, export.bytes, MARGINS["bytes"])
        if earlier.quality is not None and export.quality is not None:
            yield from _quality_figures(of, earlier.quality, export.quality)
        yield from _speed_figures(of, earlier, export, judging)
    judging.notes.extend(f"{format} for {target}: only the earlier build has it." for format, target in known)


def _speed_figures(of: str, earlier: ExportResult, export: ExportResult, judging: _Judging) -> list[Change]:
    old, new = earlier.measurement, export.measurement
    if old is None or new is None or type(old) is not type(new):
        judging.notes.append(f"{of}: it was not measured alike in both builds, so its speed is not compared.")
        return []
    return [figure for figure in _measured_figures(of, old, new, judging) if figure.name != "model files"]


def _quality_figures(of: str, old: AnyQuality, new: AnyQuality) -> Iterator[Change]:
    """Yields the change of what a quality is known by. The rows are not paired, so the interval is wide."""
    one, other = old.headline, new.headline
    if one.metric != other.metric:
        return
    margin = MARGINS[one.metric]
    if one.metric == "accuracy":
        interval = independent_difference_interval(other.value, other.interval, one.value, one.interval)
        change, verdict = other.value - one.value, judge_difference(interval, margin)
    else:
        interval = independent_ratio_interval(other.value, other.interval, one.value, one.interval)
        change, verdict = other.value / one.value, judge(_inverse(interval), margin)
    yield Change(
        of=of,
        name=one.metric,
        unit=one.metric,
        before=one.value,
        after=other.value,
        change=change,
        interval=interval,
        margin=margin,
        verdict=verdict,
    )


def _measured_figures(of: str, old: AnyMeasurement, new: AnyMeasurement, judging: _Judging) -> list[Change]:
    """Returns speed, memory and size of two measurements of one kind."""
    found = [(name, judging.doubts(each)) for name, each in (("earlier", old), ("later", new))]
    told = [f"{of + ': ' if of else ''}{name}: {doubt}" for name, doubt in found if doubt]
    judging.notes.extend(told)
    figures = [_timed(of, *times, margin=judging.margin) for times in _times(old, new)]
    if told:
        figures = [figure.model_copy(update={"verdict": figure.verdict and "inconclusive"}) for figure in figures]
    figures.append(_sized(of, "peak memory", old.peak_rss_bytes, new.peak_rss_bytes, MEMORY_MARGIN))
    figures.append(_sized(of, "model files", old.model_bytes, new.model_bytes, MARGINS["bytes"]))
    return figures


_SHOWN = frozenset({"p95 latency"})
"""Speeds that are shown and not judged: the tail of a run is the machine's more than the model's."""

_Estimate = tuple[float, Interval]


def _times(old: AnyMeasurement, new: AnyMeasurement) -> Iterator[tuple[str, Unit, tuple[_Estimate, _Estimate]]]:
    """Yields name, unit and both values with their intervals."""
    if isinstance(old, Measurement) and isinstance(new, Measurement):
        yield "p50 latency", "ms", ((old.p50_ms, old.p50_interval_ms), (new.p50_ms, new.p50_interval_ms))
        yield "p95 latency", "ms", ((old.p95_ms, old.p95_interval_ms), (new.p95_ms, new.p95_interval_ms))
        return
    assert isinstance(old, GenerationMeasurement)
    assert isinstance(new, GenerationMeasurement)
    known = {depth.context_tokens: depth for depth in old.depths}
    for depth in new.depths:
        earlier = known.get(depth.context_tokens)
        if earlier is None:
            continue
        after = f"after {depth.context_tokens:,} tokens"
        pair = (earlier, depth)
        one, other = ((each.first_token_ms, each.first_token_interval_ms) for each in pair)
        yield f"first token {after}", "ms", (one, other)
        one, other = ((each.decode_tokens_per_s, each.decode_tokens_per_s_interval) for each in pair)
        yield f"decode {after}", "tokens/s", (one, other)


def _timed(of: str, name: str, unit: Unit, values: tuple[_Estimate, _Estimate], *, margin: float) -> Change:
    old, new = values
    interval = independent_ratio_interval(*new, *old)
    good = interval if unit in _HIGHER_IS_BETTER else _inverse(interval)
    return Change(
        of=of,
        name=name,
        unit=unit,
        before=old[0],
        after=new[0],
        change=new[0] / old[0],
        interval=interval,
        margin=margin,
        verdict=None if name in _SHOWN else judge(good, margin),
    )


def _sized(of: str, name: str, old: int, new: int, margin: float) -> Change:
    """Returns the change of a size, smaller being better; an unknown one is 0 and not judged."""
    known = old > 0 and new > 0
    ratio = new / old if known else 1.0
    verdict = judge(Interval(low=1 / ratio, high=1 / ratio), margin) if known else None
    return Change(of=of, name=name, unit="bytes", before=old, after=new, change=ratio, margin=margin, verdict=verdict)


def _inverse(interval: Interval) -> Interval:
    return Interval(low=1 / interval.high, high=1 / interval.low, confidence=interval.confidence)


def _kind(saved: Saved) -> str:
    if isinstance(saved, BuildResult):
        return "a build"
    return (
        "a language model's measurement" if isinstance(saved, GenerationMeasurement) else "a classifier's measurement"
    )


def _machines(before: Saved, after: Saved) -> Iterator[tuple[Result, Result]]:
    if isinstance(before, BuildResult) and isinstance(after, BuildResult) and before.machine and after.machine:
        yield before.machine, after.machine
    for one, other in _measured(before, after):
        yield one.machine, other.machine


def _measured(before: Saved, after: Saved) -> Iterator[tuple[AnyMeasurement, AnyMeasurement]]:
    """Yields the measurements of both that belong together."""
    if not isinstance(before, BuildResult) or not isinstance(after, BuildResult):
        assert not isinstance(before, BuildResult)
        assert not isinstance(after, BuildResult)
        yield before, after
        return
    known = {(export.format, export.target): export.measurement for export in before.exports}
    for export in after.exports:
        old, new = known.get((export.format, export.target)), export.measurement
        if old is not None and new is not None and type(old) is type(new):
            yield old, new


def _scenario(measured: AnyMeasurement) -> dict[str, object]:
    """Returns what is done in one call or run: two measurements of other work have no ratio."""
    fields = measured.deepest if isinstance(measured, GenerationMeasurement) else measured
    return {name: getattr(fields, name) for name in _SCENARIO if hasattr(fields, name)}


def _differing(what: str, before: Result | dict[str, object], after: Result | dict[str, object]) -> str:
    """Returns which fields of two are not the same, with both values; empty when all are."""
    one, other = (each if isinstance(each, dict) else each.model_dump() for each in (before, after))
    parts = [f"{name} {one[name]!r} and {other[name]!r}" for name in one if one[name] != other[name]]
    return f"another {what}: found {', '.join(parts)}" if parts else ""


def _flat_changes(before: JsonValue, after: JsonValue, name: str = "") -> list[SettingChange]:
    """Returns the leaves that differ, each named by its way from the root."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        pairs = [(key, before.get(key), after.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list):
        pairs = [(str(place), *both) for place, both in enumerate(zip_longest(before, after))]
    else:
        return [SettingChange(name=name, before=_spell(before), after=_spell(after))]
    return [
        change for key, old, new in pairs for change in _flat_changes(old, new, f"{name}.{key}" if name else str(key))
    ]


def _spell(value: JsonValue) -> str:
    return "none" if value is None else str(value)
