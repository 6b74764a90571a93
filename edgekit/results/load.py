"""What a classifier does under load, after MLPerf Inference: in batches, at a rate of arrivals, for minutes on end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekit.results.base import Interval, Result


class OfflineBatch(Result):
    """Throughput of one batch size, calls back to back."""

    batch: int
    """Rows a call."""
    rows_per_s: float
    rows_per_s_interval: Interval
    """From the interval of the median call."""


class Offline(Result):
    """How many rows a second are done when all of them are there and nobody waits for one."""

    scenario: Literal["offline"] = "offline"
    batches: list[OfflineBatch] = Field(min_length=1)
    """By rising size."""
    best_batch: int
    """The size with the highest throughput."""
    rows_per_s: float
    """Throughput of that size."""


class ServerTrial(Result):
    """Queries that arrived at random at one rate, one row each, and how long they took, waiting included."""

    rate_per_s: float
    """Queries a second, on average."""
    queries: int
    p50_ms: float
    p99_ms: float
    p99_interval_ms: Interval
    met: bool | None
    """Whether the p99 kept its bound: its whole interval lies on one side; None: it does not."""


class Server(Result):
    """The highest rate of random arrivals at which the p99 keeps its bound."""

    scenario: Literal["server"] = "server"
    p99_bound_ms: float
    rate_per_s: float | None
    """The highest rate that was met; None: not even the lowest that was tried."""
    utilization: float | None
    """The share of the time that the model is busy at that rate, by its p50."""
    trials: list[ServerTrial]
    """In the order in which they were run."""


class SustainedWindow(Result):
    """Some seconds of calls back to back."""

    start_s: float
    """Since the first call."""
    p50_ms: float
    p95_ms: float
    calls: int


class Sustained(Result):
    """Whether minutes of work slow a device down: heat lowers its clock."""

    scenario: Literal["sustained"] = "sustained"
    windows: list[SustainedWindow] = Field(min_length=2)
    slowdown: float
    """Median p50 of the last quarter of the windows over that of the first: 1.2 is 20 % slower at the end."""
    worst_slowdown: float
    """The same of the slowest window."""


UnderLoad = Offline | Server | Sustained
