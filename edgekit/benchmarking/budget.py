"""Judges what was found against a budget. A gate passes or fails only when the evidence clears the limit.

- Sizes are exact: met or missed.
- p95 latency and quality drop have confidence intervals: met when the whole interval keeps the limit, missed when the
  whole interval breaks it, else inconclusive. p95 also needs enough samples that its upper end bounds anything.
- Inconclusive is not met. It means: measure more, or on a quieter machine, or evaluate on more rows.
- p95 latency and peak memory belong to a device. Where they were measured on another machine they are not-measured for
  the target, whatever they are there; that neither meets nor misses the budget.
"""

from __future__ import annotations

import re

from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.benchmarking.statistics import effective_samples, samples_needed
from edgekit.results import BudgetCheck, BudgetResult, CheckStatus, Interval, Machine, Measurement, Quality
from edgekit.target import Budget, Target

_MET: CheckStatus = "met"
_MISSED: CheckStatus = "missed"
_ELSEWHERE = "This machine is not such a device, and its figure would not be the device's. Measure it there."


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
    measurement: Measurement | None,
    quality: Quality | None,
    measured_on_target: bool,
) -> BudgetResult:
    """Returns one check for every limit that the budget sets."""
    checks: list[BudgetCheck] = []
    if budget.file_bytes is not None:
        checks.append(_check_size("file_bytes", budget.file_bytes, file_bytes, "The model files take"))
    if budget.peak_memory_bytes is not None:
        checks.append(_on_device("peak_memory_bytes", budget.peak_memory_bytes, measurement, measured_on_target))
    if budget.p95_ms is not None:
        checks.append(_on_device("p95_ms", budget.p95_ms, measurement, measured_on_target))
    if budget.quality_drop is not None:
        checks.append(_check_quality(budget.quality_drop, quality))
    return BudgetResult(met=all(check.status in ("met", "not-measured") for check in checks), checks=checks)


def _check_size(name: str, limit: float, value: int, subject: str) -> BudgetCheck:
    met = value <= limit
    comparison = f"{_megabytes(limit)} allowed" if met else f"{_megabytes(limit)} allowed: too much"
    return BudgetCheck(
        name=name,
        limit=limit,
        value=value,
        status="met" if met else "missed",
        explanation=f"{subject} {_megabytes(value)}, {comparison}.",
    )


def _on_device(name: str, limit: float, measurement: Measurement | None, on_target: bool) -> BudgetCheck:
    """Judges a figure that belongs to a device, if it was measured on such a one."""
    if not on_target:
        return BudgetCheck(name=name, limit=limit, value=None, status="not-measured", explanation=_ELSEWHERE)
    if measurement is None:
        return _inconclusive(name, limit, "Nothing was measured.")
    return _JUDGES[name](name, limit, measurement)


def _check_memory(name: str, limit: float, measurement: Measurement) -> BudgetCheck:
    # 0 is how a system without this figure reports it.
    if measurement.peak_rss_bytes == 0:
        return _inconclusive(name, limit, "This system does not tell a process's peak memory.")
    return _check_size(name, limit, measurement.peak_rss_bytes, "The process, its interpreter included, peaked at")


def _check_latency(name: str, limit: float, measurement: Measurement) -> BudgetCheck:
    interval, value = measurement.p95_interval_ms, measurement.p95_ms
    found = f"p95 is {value:.3g} ms ({interval.low:.3g} to {interval.high:.3g}) on {measurement.machine.cpu}"
    if interval.low > limit:
        return BudgetCheck(
            name=name,
            limit=limit,
            value=value,
            interval=interval,
            status="missed",
            explanation=f"{found}, {limit:g} ms allowed: too slow.",
        )
    independent, needed = effective_samples(measurement.samples_ms, 0.95), samples_needed(0.95, interval.confidence)
    if independent < needed:
        reason = f"{found} from samples worth {independent:.0f} independent ones, {needed} needed to bound it."
        return _inconclusive(name, limit, f"{reason} Sample longer.", value, interval)
    if interval.high > limit:
        reason = f"{found}, which does not clear {limit:g} ms. Sample longer, or on a quieter machine."
        return _inconclusive(name, limit, reason, value, interval)
    return BudgetCheck(
        name=name,
        limit=limit,
        value=value,
        interval=interval,
        status="met",
        explanation=f"{found}, {limit:g} ms allowed.",
    )


def _check_quality(limit: float, quality: Quality | None) -> BudgetCheck:
    name = "quality_drop"
    if quality is None or quality.accuracy_change is None or quality.accuracy_change_interval is None:
        return _inconclusive(name, limit, "The accuracy was not compared with the teacher's.")
    change = quality.accuracy_change_interval
    interval = Interval(low=-change.high, high=-change.low, confidence=change.confidence)
    drop = -quality.accuracy_change
    found = (
        f"Accuracy changed by {100 * quality.accuracy_change:+.2f} points "
        f"({100 * change.low:+.2f} to {100 * change.high:+.2f}) on {quality.rows:,} rows"
    )
    if interval.low > limit:
        status, rest = _MISSED, f"a drop of {100 * limit:g} allowed: too much."
    elif interval.high <= limit:
        status, rest = _MET, f"a drop of {100 * limit:g} allowed."
    else:
        reason = f"{found}, which does not clear a drop of {100 * limit:g}. Evaluate on more rows."
        return _inconclusive(name, limit, reason, drop, interval)
    explanation = f"{found}, {rest}"
    return BudgetCheck(name=name, limit=limit, value=drop, interval=interval, status=status, explanation=explanation)


_JUDGES = {"peak_memory_bytes": _check_memory, "p95_ms": _check_latency}


def _inconclusive(
    name: str, limit: float, explanation: str, value: float | None = None, interval: Interval | None = None
) -> BudgetCheck:
    return BudgetCheck(
        name=name, limit=limit, value=value, interval=interval, status="inconclusive", explanation=explanation
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"
