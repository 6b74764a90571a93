"""The one figure that each kind of quality and of measurement is known by, in a form that no kind need be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.results.base import Interval

MetricName = Literal["accuracy", "perplexity"]


@dataclass(frozen=True)
class Headline:
    """What a quality is judged by."""

    metric: MetricName
    value: float
    interval: Interval
    change_name: Literal["accuracy_change", "perplexity_ratio"]
    """What `change` is: a difference of accuracies, or a ratio of perplexities."""
    change: float | None
    """Since the teacher, on the same rows or tokens; None without a teacher."""
    change_interval: Interval | None
    amount: int
    """How many rows or tokens were evaluated."""
    unit: Literal["rows", "tokens"]
    divergence: float | None = None
    """Mean KL(teacher || model), nats a token; None for classifiers, or without a teacher."""


@dataclass(frozen=True)
class Timing:
    """Times in ms of many calls that do the same, and their quantiles."""

    samples_ms: list[float]
    p50_ms: float
    p50_interval_ms: Interval
    p95_ms: float
    p95_interval_ms: Interval
    p99_ms: float
    p99_interval_ms: Interval
