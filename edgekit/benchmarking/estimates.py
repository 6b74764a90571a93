"""Every estimate of an export for its target, and, where the target was measured as well, how far off it was."""

from __future__ import annotations

import math

from edgekit.benchmarking.decode_estimate import estimate_decode
from edgekit.benchmarking.roofline import Shape, estimate_latency, estimate_peak_memory, is_countable
from edgekit.results import AnyMeasurement, Estimate, EstimateCheck, GenerationMeasurement
from edgekit.runtimes.protocol import ModelOnDisk
from edgekit.target import Target


def estimate_all(model: ModelOnDisk, target: Target, shape: Shape, measurement: AnyMeasurement) -> list[Estimate]:
    """Returns what the target is likely to take, for `measurement` was not taken there: speed, then memory."""
    return [
        *_speed(model, target, shape, measurement),
        estimate_peak_memory(model, target, measurement),
    ]


def check_estimates(
    model: ModelOnDisk, target: Target, shape: Shape, measurement: AnyMeasurement
) -> list[EstimateCheck]:
    """Returns each estimate beside what was measured on a machine that counts as the target.

    The estimates are made as if there were no measurement: of memory, from the file's size.
    """
    if isinstance(measurement, GenerationMeasurement):
        speed = measurement.deepest.decode_tokens_per_s
    else:
        speed = measurement.p50_ms
    checks = [_check(estimate, speed) for estimate in _speed(model, target, shape, measurement)]
    added = measurement.peak_rss_bytes - measurement.library_rss_bytes
    if measurement.library_rss_bytes > 0 and added > 0:
        checks.append(_check(estimate_peak_memory(model, target), added))
    return checks


def _speed(model: ModelOnDisk, target: Target, shape: Shape, measurement: AnyMeasurement) -> list[Estimate]:
    if isinstance(measurement, GenerationMeasurement):
        return estimate_decode(measurement, target)
    return [estimate_latency(model, target, shape)] if is_countable(model) else []


def _check(estimate: Estimate, measured: float) -> EstimateCheck:
    middle = math.sqrt(estimate.low * estimate.high)
    return EstimateCheck(
        estimate=estimate,
        measured=measured,
        ratio=measured / middle,
        within=estimate.low <= measured <= estimate.high,
    )
