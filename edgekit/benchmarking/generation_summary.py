"""Sums up the times of runs: speeds and quantiles with their intervals, the roofline, and the fit over the depths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.benchmarking.generation_process import GenerationProcess, Written
from edgekit.benchmarking.machine import load_average
from edgekit.benchmarking.statistics import mean_interval, median_ratio, quantile_interval
from edgekit.benchmarking.step_bytes import StepBytes
from edgekit.benchmarking.surroundings import Surroundings, split_of
from edgekit.benchmarking.verdict import judge
from edgekit.results import DecodeFit, GenerationDepth, GenerationMeasurement, GenerationRatio, Interval, Machine
from edgekit.runtimes.protocol import model_bytes

_KEPT_SAMPLES = 10_000
_WARMUP_RUNS = 1


@dataclass(frozen=True)
class Conditions:
    """What a run took place under."""

    machine: Machine
    load_average: float
    """One-minute load average when the run began."""
    bandwidth_bytes_per_s: float
    """Read bandwidth of the memory, with as many threads."""
    seed: int
    """Of the bootstrap."""
    energy_csv: Path | None = None
    """A power meter's file."""


@dataclass
class Series:
    """The runs of one process."""

    process: GenerationProcess
    load_cold_ms: float | None
    depths: tuple[int, ...]
    runs: dict[int, list[Written]] = field(init=False)
    """Depth to its runs after the warm-up, in order."""
    surroundings: Surroundings = field(default_factory=Surroundings)

    def __post_init__(self) -> None:
        """Starts without runs."""
        self.runs = {depth: [] for depth in self.depths}

    def take_run(self, depth: int, new_tokens: int) -> None:
        """Adds one run."""
        with self.surroundings.watch(self.process.look):
            self.runs[depth].append(self.process.write(depth, new_tokens))

    @property
    def tokens(self) -> int:
        """Returns the tokens that were written in all runs, the first ones too."""
        return sum(1 + len(run.token_ns) for runs in self.runs.values() for run in runs)

    @property
    def seconds(self) -> float:
        """Returns the time of all runs."""
        every = [run for runs in self.runs.values() for run in runs]
        return sum(run.first_token_ns + sum(run.token_ns) for run in every) / 1e9


def is_precise(series: Series, share: float, *, seed: int) -> bool:
    """Returns whether the interval of the decode speed is narrow at every depth: `share` to either side, on average."""
    for runs in series.runs.values():
        times = [float(sum(run.token_ns)) for run in runs]
        interval = mean_interval(times, seed=seed)
        if interval.high - interval.low > 2 * share * float(np.mean(times)):
            return False
    return True


def summarize(series: Series, step: StepBytes | None, conditions: Conditions) -> GenerationMeasurement:
    """Returns what was measured."""
    subject, opened, memory = series.process.subject, series.process.opened, series.process.memory()
    depths = [summarize_depth(depth, series.runs[depth], step, conditions) for depth in series.depths]
    return GenerationMeasurement(
        runtime=subject.runtime.name,
        runtime_version=subject.runtime.version(),
        threads=subject.threads,
        depths=depths,
        warmup_runs=_WARMUP_RUNS,
        load_cold_ms=series.load_cold_ms,
        load_warm_ms=opened.load_ms,
        memory_bandwidth_bytes_per_s=conditions.bandwidth_bytes_per_s,
        fit=fit_decode(depths),
        context_length=series.process.context_length,
        peak_rss_bytes=memory.peak_bytes,
        rss_anonymous_bytes=memory.anonymous_bytes,
        rss_file_bytes=memory.file_bytes,
        baseline_rss_bytes=opened.baseline_bytes,
        library_rss_bytes=opened.library_bytes,
        peak_split=split_of(series.process.largest),
        memory_limit_bytes=subject.memory_limit_bytes,
        energy=series.surroundings.energy(conditions.energy_csv, series.tokens),
        load_average=conditions.load_average,
        conditions=series.surroundings.conditions(load_average()),
        pinned_cores=opened.cores,
        machine=conditions.machine,
        model_digest=subject.model.digest,
        model_bytes=model_bytes(subject.model),
    )


def summarize_depth(
    depth: int, runs: Sequence[Written], step: StepBytes | None, conditions: Conditions
) -> GenerationDepth:
    """Returns the figures of one depth, from at least one run of at least one token."""
    new_tokens = len(runs[0].token_ns)
    firsts = [run.first_token_ns / 1e6 for run in runs]
    prefills = [run.prefill_ns / 1e9 for run in runs]
    decodes = [sum(run.token_ns) / 1e9 for run in runs]
    tokens = [time / 1e6 for run in runs for time in run.token_ns]
    kept = tokens[:: -(-len(tokens) // _KEPT_SAMPLES)]
    points = {f"inter_token_p{percent}_ms": float(np.quantile(kept, percent / 100)) for percent in (50, 95, 99)}
    intervals = {
        f"inter_token_p{percent}_interval_ms": quantile_interval(kept, percent / 100) for percent in (50, 95, 99)
    }
    decode, bandwidth = new_tokens / float(np.mean(decodes)), conditions.bandwidth_bytes_per_s
    # Step k reads the keys and values of the prompt and of k tokens: on average those of half the answer.
    step_bytes = None if step is None else step.at(depth + (new_tokens + 1) // 2)
    return GenerationDepth(
        context_tokens=depth,
        new_tokens=new_tokens,
        first_token_ms=float(np.median(firsts)),
        first_token_interval_ms=quantile_interval(firsts, 0.5),
        prefill_tokens_per_s=depth / float(np.median(prefills)),
        prefill_tokens_per_s_interval=_rate(depth, quantile_interval(prefills, 0.5)),
        decode_tokens_per_s=decode,
        decode_tokens_per_s_interval=_rate(new_tokens, mean_interval(decodes, seed=conditions.seed)),
        **points,
        **intervals,
        first_token_samples_ms=firsts,
        inter_token_samples_ms=kept,
        bytes_per_token=step_bytes,
        roofline_share=None if step_bytes is None or bandwidth <= 0 else decode * step_bytes / bandwidth,
    )


def fit_decode(depths: Sequence[GenerationDepth]) -> DecodeFit | None:
    """Returns the line t = b / `bytes_per_s` + overhead through the mean times t of a token and its bytes b.

    Ordinary least squares; where that gives an overhead below zero, least squares with none (Lawson and Hanson,
    "Solving least squares problems", 1974, chapter 23, for two unknowns). None for one depth, unknown bytes, or a
    time that does not grow with them.
    """
    known = [(depth.bytes_per_token, 1 / depth.decode_tokens_per_s) for depth in depths if depth.bytes_per_token]
    if len({size for size, _ in known}) < 2:
        return None
    sizes = np.array([size for size, _ in known], dtype=np.float64)
    seconds = np.array([time for _, time in known])
    spread = sizes - sizes.mean()
    slope = float(spread @ seconds / (spread @ spread))
    overhead = float(seconds.mean() - slope * sizes.mean())
    if overhead < 0:
        slope, overhead = float(sizes @ seconds / (sizes @ sizes)), 0.0
    return DecodeFit(bytes_per_s=1 / slope, overhead_ms=1e3 * overhead) if slope > 0 else None


def compare_series(series: Sequence[Series], *, margin: float, seed: int) -> list[GenerationRatio]:
    """Returns how much longer each of the others takes than the first at each depth, paired by round."""
    return [
        _compare(series[0].runs[depth], other.runs[depth], (index, depth), margin, seed)
        for index, other in enumerate(series[1:], start=1)
        for depth in other.depths
    ]


def _compare(
    first: Sequence[Written], other: Sequence[Written], place: tuple[int, int], margin: float, seed: int
) -> GenerationRatio:
    """Returns the ratio for the series and the depth that `place` names."""
    pairs = list(zip(first, other, strict=True))
    token, token_interval = median_ratio([sum(b.token_ns) / sum(a.token_ns) for a, b in pairs], seed=seed)
    start, start_interval = median_ratio([b.first_token_ns / a.first_token_ns for a, b in pairs], seed=seed)
    return GenerationRatio(
        measurement=place[0],
        context_tokens=place[1],
        token_time=token,
        token_time_interval=token_interval,
        first_token_time=start,
        first_token_time_interval=start_interval,
        margin=margin,
        verdict=judge(token_interval, margin),
    )


def _rate(count: int, seconds: Interval) -> Interval:
    """Returns the interval of a rate from that of the time for `count`."""
    return Interval(low=count / seconds.high, high=count / seconds.low, confidence=seconds.confidence)
