"""Judges what was found against a budget. A gate passes or fails only when the evidence clears the limit.

- Sizes are exact: met or missed.
- Speed and quality have confidence intervals: met when the whole interval keeps the limit, missed when the whole
  interval breaks it, else inconclusive. A quantile also needs enough samples that its upper end bounds anything.
- Inconclusive is not met. It means: measure more, or on a quieter machine, or evaluate on more rows.
- Speed and peak memory belong to a device. Where they were measured on another machine they are not-measured for the
  target, whatever they are there; that neither meets nor misses the budget.
- A language model's speed is judged at the deepest context that was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from edgekit.benchmarking.judging import Found, as_check, inconclusive, judge
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.benchmarking.quality_limits import check_quality
from edgekit.benchmarking.statistics import effective_samples, samples_needed
from edgekit.results import (
    AnyMeasurement,
    AnyQuality,
    BudgetCheck,
    BudgetResult,
    GenerationMeasurement,
    Interval,
    Machine,
    Measurement,
)
from edgekit.target import Budget, Target

_ELSEWHERE = "This machine is not such a device, and its figure would not be the device's. Measure it there."

_UNSEEN = "Nobody has run the file. Evaluate it where it runs."


def host_mismatch(target: Target, machine: Machine | None = None) -> str | None:
    """Returns why figures of `machine` (this one by default) are not the target's; None when they are.

    A machine stands for a target when it has the target's architecture and all of its `cpu_features`, and, where the
    target names one device, when its device or processor name matches the target's `host_pattern`. A phone or a board
    has a pattern; a class of devices such as laptops has none.
    """
    machine = machine or machine_fingerprint()
    if machine.architecture != target.architecture:
        return f"the architecture is {machine.architecture}, not {target.architecture}"
    missing = [feature for feature in target.cpu_features if feature not in machine.cpu_features]
    if missing:
        return f"the processor lacks {', '.join(missing)}"
    names = (machine.device, machine.cpu)
    if target.host_pattern is not None and not any(re.search(target.host_pattern, name) for name in names):
        return f"the machine is a {machine.device or machine.cpu}, not a {target.description}"
    return None


def host_matches(target: Target, machine: Machine | None = None) -> bool:
    """Returns True when figures of `machine` (this one by default) count as the target's: see `host_mismatch`."""
    return host_mismatch(target, machine) is None


def check_budget(
    budget: Budget,
    *,
    file_bytes: int,
    measurement: AnyMeasurement | None,
    quality: AnyQuality | None,
    measured_on_target: bool,
) -> BudgetResult:
    """Returns one check for every limit that the budget sets."""
    checks: list[BudgetCheck] = []
    if budget.file_bytes is not None:
        checks.append(_check_size("file_bytes", budget.file_bytes, file_bytes, "The model files take"))
    for name in _ON_DEVICE:
        limit: float | None = getattr(budget, name)
        if limit is not None:
            checks.append(_on_device(name, limit, measurement, measured_on_target))
    checks += check_quality(budget, quality)
    return BudgetResult(met=all(check.status in ("met", "not-measured") for check in checks), checks=checks)


def check_unseen(budget: Budget, *, file_bytes: int) -> BudgetResult:
    """Returns the same for a file that nobody has run: its size is judged, and nothing else is measured."""
    sizes = budget.model_copy(update={"quality_drop": None})
    found = check_budget(sizes, file_bytes=file_bytes, measurement=None, quality=None, measured_on_target=False)
    if budget.quality_drop is None:
        return found
    unknown = BudgetCheck(
        name="quality_drop", limit=budget.quality_drop, value=None, status="not-measured", explanation=_UNSEEN
    )
    return found.model_copy(update={"checks": [*found.checks, unknown]})


def _check_size(name: str, limit: float, value: int, subject: str) -> BudgetCheck:
    met = value <= limit
    comparison = f"{_mebibytes(limit)} allowed" if met else f"{_mebibytes(limit)} allowed: too much"
    return BudgetCheck(
        name=name,
        limit=limit,
        value=value,
        status="met" if met else "missed",
        explanation=f"{subject} {_mebibytes(value)}, {comparison}.",
    )


def _on_device(name: str, limit: float, measurement: AnyMeasurement | None, on_target: bool) -> BudgetCheck:
    """Judges a figure that belongs to a device, if it was measured on such a one."""
    if not on_target:
        return BudgetCheck(name=name, limit=limit, value=None, status="not-measured", explanation=_ELSEWHERE)
    if measurement is None:
        return inconclusive(name, limit, "Nothing was measured.")
    return _ON_DEVICE[name](name, limit, measurement)


def _check_memory(name: str, limit: float, measurement: AnyMeasurement) -> BudgetCheck:
    # 0 is how a system without this figure reports it.
    if measurement.peak_rss_bytes == 0:
        return inconclusive(name, limit, "This system does not tell a process's peak memory.")
    return _check_size(name, limit, measurement.peak_rss_bytes, "The process, its interpreter included, peaked at")


def _check_latency(name: str, limit: float, measurement: AnyMeasurement) -> BudgetCheck:
    if not isinstance(measurement, Measurement):
        return inconclusive(name, limit, "What was measured is writing, not one call: limit first_token_ms.")
    interval = measurement.p95_interval_ms
    found = Found(
        name=name,
        limit=limit,
        value=measurement.p95_ms,
        interval=interval,
        words=f"p95 is {_milliseconds(measurement.p95_ms, interval)} on {measurement.machine.cpu}",
        allowed=f"{limit:g} ms",
        complaint="too slow",
        advice="Sample longer, or on a quieter machine.",
    )
    return _too_few(found, measurement.samples_ms, 0.95) or judge(found)


def _check_first_token(name: str, limit: float, measurement: AnyMeasurement) -> BudgetCheck:
    if not isinstance(measurement, GenerationMeasurement):
        return inconclusive(name, limit, "What was measured is one call, not writing: limit p95_ms.")
    depth = measurement.deepest
    interval = depth.first_token_interval_ms
    time = _milliseconds(depth.first_token_ms, interval)
    found = Found(
        name=name,
        limit=limit,
        value=depth.first_token_ms,
        interval=interval,
        words=f"The first token after {depth.context_tokens:,} takes {time} on {measurement.machine.cpu}",
        allowed=f"{limit:g} ms",
        complaint="too slow",
        advice="Sample longer, or on a quieter machine.",
    )
    return _too_few(found, depth.first_token_samples_ms, 0.5) or judge(found)


def _check_decode(name: str, limit: float, measurement: AnyMeasurement) -> BudgetCheck:
    if not isinstance(measurement, GenerationMeasurement):
        return inconclusive(name, limit, "What was measured is one call, not writing: limit p95_ms.")
    depth = measurement.deepest
    value, interval = depth.decode_tokens_per_s, depth.decode_tokens_per_s_interval
    rate = f"{value:.3g} tokens/s ({interval.low:.3g} to {interval.high:.3g})"
    return judge(
        Found(
            name=name,
            limit=limit,
            value=value,
            interval=interval,
            words=f"After {depth.context_tokens:,} tokens it writes {rate} on {measurement.machine.cpu}",
            allowed=f"{limit:g} tokens/s",
            complaint="too slow",
            advice="Sample longer, or on a quieter machine.",
            least=True,
        )
    )


def _too_few(found: Found, samples_ms: list[float], quantile: float) -> BudgetCheck | None:
    """Returns an inconclusive check where too few samples bound the quantile; None where enough do, or it is missed."""
    independent, needed = effective_samples(samples_ms, quantile), samples_needed(quantile, found.interval.confidence)
    if found.interval.low > found.limit or independent >= needed:
        return None
    reason = f"{found.words} from samples worth {independent:.0f} independent ones, {needed} needed to bound it."
    return as_check(found, "inconclusive", f"{reason} Sample longer.")


_ON_DEVICE: dict[str, Callable[[str, float, AnyMeasurement], BudgetCheck]] = {
    "peak_memory_bytes": _check_memory,
    "p95_ms": _check_latency,
    "first_token_ms": _check_first_token,
    "decode_tokens_per_s": _check_decode,
}
"""Limits that belong to a device, in the order of their checks."""


def _milliseconds(value: float, interval: Interval) -> str:
    return f"{value:.3g} ms ({interval.low:.3g} to {interval.high:.3g})"


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"
