"""Puts a classifier under load, after the scenarios of MLPerf Inference (Reddi et al., arXiv:1911.02549, section 4).

Single-stream is what every measurement is, and multi-stream the same with a batch: its p99 is in the measurement. Here
are the others: offline, server, and, which MLPerf's mobile rules ask of a device by its heat, sustained. What they ask
of language models is in `generation_load.py`, but for the search of a rate, which is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import Scenario
from edgekit.benchmarking.series import STAGE
from edgekit.benchmarking.statistics import quantile_interval
from edgekit.errors import UsageError
from edgekit.events import Event, EventSink
from edgekit.results import Interval, Offline, OfflineBatch, Server, ServerTrial, Sustained, SustainedWindow

BATCHES = (1, 2, 4, 8, 16, 32, 64)
_BATCH_S = 1.0
"""Seconds of each batch size, in each of two passes."""
_LEAST_CALLS = 5
_HIGHEST = 1.0
"""Utilization up to which the rate is sought; a queue that is always busy grows without end."""
_HOPELESS = 50
"""Times the bound that a query may wait before a trial is given up: its queue has no end."""
_MANY = 10_000_000
_WINDOWS = 40
_LEAST_WINDOW_S = 1.0


@dataclass(frozen=True)
class Service:
    """What is promised to those who ask."""

    bound_ms: float
    """What 99 of 100 queries may take at most, waiting included."""
    seed: int
    """Of the arrivals."""
    timeout_s: float
    """How long an answer of the process may take beyond a trial."""


@dataclass(frozen=True)
class RateSearch:
    """How the highest rate is sought."""

    queries: int = 600
    """Queries of a trial at least: a p99 needs 368 independent ones before its interval bounds anything."""
    trial_s: float = 3.0
    """Seconds of a trial at least."""
    undecided_factor: int = 4
    """Times as many queries where the first left it open."""
    lowest: float = 0.05
    """Utilization of the first trial."""
    steps: int = 6
    """Times that the rate is halved in between after it."""


@dataclass(frozen=True)
class Taken:
    """What was done in one window."""

    samples_ns: list[int]
    """Times of calls, or of tokens."""
    span_ns: int
    """Time of the window."""
    calls_per_sample: int = 1
    """Calls that a sample is the mean of."""


Serving = Callable[[list[int], int], list[int]]
"""Arrivals and the latency that gives up, ns, to the latency of each, ns."""


def run_offline(
    subject: Subject, make_scenario: Callable[[int], Scenario], timeout_s: float, events: EventSink
) -> Offline:
    """Measures the throughput of every size in `BATCHES`, once upwards and once downwards; drifts cancel out.

    Raises:
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    samples: dict[int, list[int]] = {batch: [] for batch in BATCHES}
    order = [*BATCHES, *reversed(BATCHES)]
    with MeasuringProcess(subject, timeout_s) as process:
        for done, batch in enumerate(order):
            _tell(events, "batch sizes", done, len(order))
            process.set_inputs(make_scenario(batch))
            process.sample(2, timeout_s)  # memory of the new shapes is made here
            taken: list[int] = []
            while len(taken) < _LEAST_CALLS or process.calls_per_sample * sum(taken) < _BATCH_S * 1e9:
                taken += process.sample(_LEAST_CALLS, _BATCH_S)
            samples[batch] += taken
    batches = [_throughput(batch, taken) for batch, taken in samples.items()]
    best = max(batches, key=lambda each: each.rows_per_s)
    return Offline(batches=batches, best_batch=best.batch, rows_per_s=best.rows_per_s)


def run_server(subject: Subject, service: Service, p50_ms: float, events: EventSink) -> Server:
    """Seeks the highest rate of Poisson arrivals whose p99 keeps the bound; see `seek_rate`.

    Args:
        subject: the model, one row a call.
        service: the bound, and the arrivals.
        p50_ms: the model's time alone.
        events: told of progress.

    Raises:
        UsageError: a batch of more than one row.
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    if subject.scenario.batch != 1:
        raise UsageError(f"scenario server: found a batch of {subject.scenario.batch}, expected 1: a query is one row.")
    with MeasuringProcess(subject, service.timeout_s) as process:
        process.sample(20, service.timeout_s)
        return seek_rate(process.serve, RateSearch(), service, p50_ms, events)


def seek_rate(serve: Serving, search: RateSearch, service: Service, busy_ms: float, events: EventSink) -> Server:
    """Seeks the highest rate of Poisson arrivals whose p99 keeps the bound, waiting included.

    The rate is halved in between: `search.steps` trials in the same process, which takes one query after another as
    they come. A trial that leaves the bound inside its interval is repeated with more queries; what stays open is not
    met. `busy_ms` is how long a query keeps the model busy, which says at which rate it would never rest.
    """
    low, high = search.lowest, _HIGHEST
    trials: list[ServerTrial] = []
    best: float | None = None
    for step in range(search.steps + 1):
        _tell(events, "arrival rates", step, search.steps + 1)
        load = low if step == 0 else (low + high) / 2
        rate = load * 1e3 / busy_ms
        trial = _try_rate(serve, rate, search, replace(service, seed=service.seed + step))
        trials.append(trial)
        if trial.met:
            low, best = load, trial.rate_per_s
        elif step == 0:
            break
        else:
            high = load
    return Server(
        p99_bound_ms=service.bound_ms,
        rate_per_s=best,
        utilization=None if best is None else best * busy_ms / 1e3,
        trials=trials,
    )


def run_sustained(subject: Subject, seconds: float, timeout_s: float, events: EventSink) -> Sustained:
    """Runs the model for `seconds` without a pause, in windows.

    Raises:
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    with MeasuringProcess(subject, timeout_s) as process:
        process.sample(20, timeout_s)

        def take(window_s: float) -> Taken:
            samples = process.sample(_MANY, window_s)
            return Taken(samples, process.calls_per_sample * sum(samples), process.calls_per_sample)

        return sustain(take, seconds, events)


def sustain(take: Callable[[float], Taken], seconds: float, events: EventSink) -> Sustained:
    """Takes windows for `seconds`, each by a call of `take` with the seconds that it is to last."""
    window_s = max(_LEAST_WINDOW_S, seconds / _WINDOWS)
    windows: list[SustainedWindow] = []
    start = 0.0
    while start < seconds or len(windows) < 2:
        taken = take(window_s)
        windows.append(_window(start, taken))
        start += taken.span_ns / 1e9
        _tell(events, "sustained", min(round(start), round(seconds)), round(seconds), "s")
    quarter = max(1, len(windows) // 4)
    first = median(window.p50_ms for window in windows[:quarter])
    last = median(window.p50_ms for window in windows[-quarter:])
    return Sustained(
        windows=windows,
        slowdown=last / first,
        worst_slowdown=max(window.p50_ms for window in windows) / first,
    )


def make_arrivals(rate_per_s: float, queries: int, seed: int) -> list[int]:
    """Returns when each query arrives, ns since the start: a Poisson process, equal seeds giving equal times."""
    import numpy as np

    gaps = np.random.default_rng(seed).exponential(1e9 / rate_per_s, size=queries)
    return [int(time) for time in np.cumsum(gaps)]


def _try_rate(serve: Serving, rate_per_s: float, search: RateSearch, service: Service) -> ServerTrial:
    queries = max(search.queries, round(rate_per_s * search.trial_s))
    trial = _serve(serve, rate_per_s, queries, service)
    if trial.met is not None:
        return trial
    return _serve(serve, rate_per_s, queries * search.undecided_factor, service)


def _serve(serve: Serving, rate_per_s: float, queries: int, service: Service) -> ServerTrial:
    import numpy as np

    arrivals = make_arrivals(rate_per_s, queries, service.seed)
    give_up_ns = int(_HOPELESS * service.bound_ms * 1e6)
    latencies_ms = [latency / 1e6 for latency in serve(arrivals, give_up_ns)]
    interval = quantile_interval(latencies_ms, 0.99)
    met = None
    if len(latencies_ms) < queries or interval.low > service.bound_ms:
        met = False
    elif interval.high <= service.bound_ms:
        met = True
    return ServerTrial(
        rate_per_s=rate_per_s,
        queries=len(latencies_ms),
        p50_ms=median(latencies_ms),
        p99_ms=float(np.quantile(latencies_ms, 0.99)),
        p99_interval_ms=interval,
        met=met,
    )


def _throughput(batch: int, samples_ns: list[int]) -> OfflineBatch:
    interval = quantile_interval(samples_ns, 0.5)
    return OfflineBatch(
        batch=batch,
        rows_per_s=batch * 1e9 / median(samples_ns),
        rows_per_s_interval=Interval(
            low=batch * 1e9 / interval.high, high=batch * 1e9 / interval.low, confidence=interval.confidence
        ),
    )


def _window(start_s: float, taken: Taken) -> SustainedWindow:
    import numpy as np

    return SustainedWindow(
        start_s=start_s,
        p50_ms=median(taken.samples_ns) / 1e6,
        p95_ms=float(np.quantile(taken.samples_ns, 0.95)) / 1e6,
        calls=len(taken.samples_ns) * taken.calls_per_sample,
        span_s=taken.span_ns / 1e9,
    )


def _tell(events: EventSink, text: str, done: int, total: int, unit: str = "steps") -> None:
    events(Event("progress", stage=STAGE, text=text, completed=done, total=total, unit=unit))
