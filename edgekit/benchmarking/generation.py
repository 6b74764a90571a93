"""Measures how fast language models write: one alone, or several that take turns in one run.

Every model runs in a fresh process of its own (`generation_process.py`). A round is one run of each model after each
length of prompt; models follow each other at one depth, in the order A B, B A, A B ..., so that a drift of the machine
meets all of them. What the samples amount to is `generation_summary.py`'s matter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgekit.benchmarking.bandwidth import BandwidthProcess
from edgekit.benchmarking.file_cache import drop_from_cache, read_into_cache
from edgekit.benchmarking.generation_process import GenerationProcess, GenerationSubject
from edgekit.benchmarking.generation_summary import Conditions, Series, compare_series, is_precise, summarize
from edgekit.benchmarking.machine import load_average, machine_fingerprint, usable_cores
from edgekit.benchmarking.step_bytes import count_step_bytes
from edgekit.benchmarking.verdict import MARGIN
from edgekit.errors import UsageError
from edgekit.events import Event, EventSink
from edgekit.results import GenerationComparison
from edgekit.runtimes.protocol import model_files

STAGE = "bench"
PRECISION = 0.03
_BANDWIDTH_ROUNDS = 12
_MORE = 4 / 3
_WARMUP_DRIFT = 0.05
_MOST_WARMUPS = 5


@dataclass(frozen=True)
class GenerationSampling:
    """What is written, and how often."""

    depths: tuple[int, ...]
    """Tokens of the prompts, rising."""
    new_tokens: int = 32
    """Tokens written after the first one."""
    min_runs: int = 6
    """Runs at each depth at least. Six bound a median from both sides."""
    min_seconds: float = 3.0
    """Seconds of writing at least, all depths together."""
    precision: float = PRECISION
    """Sampling goes on until every interval of the decode speed is at most this share to either side ..."""
    max_seconds: float = 30.0
    """... or this many seconds for each model are over."""
    margin: float = MARGIN
    """Differences of speed up to this share do not count."""
    energy_csv: Path | None = None
    """A power meter's file; without it the processor's counters, where there are any."""
    timeout_s: float = 120.0
    """Seconds that one run, or the load, may take before the process counts as hung."""

    @property
    def context_length(self) -> int:
        """Returns the tokens that a session makes room for: the deepest run, and one that a runtime may want."""
        return self.depths[-1] + self.new_tokens + 1


def measure_generation(
    subjects: Sequence[GenerationSubject], sampling: GenerationSampling, *, seed: int, events: EventSink
) -> GenerationComparison:
    """Measures language models that take turns; the others are compared with the first, round by round.

    Raises:
        UsageError: more threads than cores, or a context longer than a model allows.
        ModelError: a runtime cannot open its model.
        MeasurementError: a process died or hung.
    """
    for subject in subjects:
        _require_cores(subject)
    machine, load = machine_fingerprint(), load_average()
    cold = [_load_cold(subject, sampling, events) for subject in subjects]
    with ExitStack() as stack:
        readers = {
            threads: stack.enter_context(BandwidthProcess(threads, machine.memory_bytes, sampling.timeout_s))
            for threads in sorted({subject.threads for subject in subjects})
        }
        series = [
            Series(stack.enter_context(_open_warm(subject, sampling)), cold_ms, sampling.depths)
            for subject, cold_ms in zip(subjects, cold, strict=True)
        ]
        _warm_up(series, sampling, events)
        rounds = _sample(series, list(readers.values()), sampling, seed, events)
        measurements = []
        for each in series:
            subject = each.process.subject
            conditions = Conditions(machine, load, readers[subject.threads].best_bytes_per_s, seed, sampling.energy_csv)
            measurements.append(summarize(each, count_step_bytes(subject.model), conditions))
    return GenerationComparison(
        names=[subject.label or subject.name for subject in subjects],
        measurements=measurements,
        ratios=compare_series(series, margin=sampling.margin, seed=seed),
        rounds=rounds,
    )


def _require_cores(subject: GenerationSubject) -> None:
    cores = len(usable_cores())
    if 0 < cores < subject.threads:
        raise UsageError(
            f"threads: found {subject.threads}, expected at most {cores}, the cores that this process may use: "
            "threads that wait for a core would be measured, not the model."
        )


def _load_cold(subject: GenerationSubject, sampling: GenerationSampling, events: EventSink) -> float | None:
    """Returns how long a process of its own takes to open the model from the disk, ms; None where that cannot be."""
    events(Event("progress", stage=STAGE, text=f"loading {subject.name}"))
    if not drop_from_cache(model_files(subject.model)):
        return None
    with GenerationProcess(subject, sampling.context_length, sampling.timeout_s) as process:
        return process.opened.load_ms


def _open_warm(subject: GenerationSubject, sampling: GenerationSampling) -> GenerationProcess:
    """Returns the process that is to be measured, not started yet, with the model's files in the cache."""
    read_into_cache(model_files(subject.model))
    return GenerationProcess(subject, sampling.context_length, sampling.timeout_s)


def _warm_up(series: Sequence[Series], sampling: GenerationSampling, events: EventSink) -> None:
    """Runs every depth once; the shallowest, last, until two runs in a row agree, five times at most."""
    shallowest = sampling.depths[0]
    for each in series:
        events(Event("progress", stage=STAGE, text=f"warming up {each.process.subject.name}"))
        for depth in reversed(sampling.depths):
            before = sum(each.process.write(depth, sampling.new_tokens, watch=True).token_ns)
        for _ in range(_MOST_WARMUPS - 1):
            now = sum(each.process.write(shallowest, sampling.new_tokens).token_ns)
            if abs(now / max(before, 1) - 1) <= _WARMUP_DRIFT:
                break
            before = now


def _take_round(series: Sequence[Series], sampling: GenerationSampling, *, backwards: bool) -> None:
    for depth in sampling.depths:
        for each in reversed(series) if backwards else series:
            each.take_run(depth, sampling.new_tokens)


def _sample(
    series: Sequence[Series],
    readers: Sequence[BandwidthProcess],
    sampling: GenerationSampling,
    seed: int,
    events: EventSink,
) -> int:
    """Takes rounds until all have enough, and returns how many; looks again after a third more rounds each time."""
    rounds, next_look, started = 0, sampling.min_runs, time.perf_counter()
    while True:
        if rounds < _BANDWIDTH_ROUNDS:
            for reader in readers:
                reader.read()
        _take_round(series, sampling, backwards=rounds % 2 == 1)
        rounds += 1
        events(Event("progress", stage=STAGE, text="writing", completed=rounds, total=next_look, unit="rounds"))
        if rounds < next_look:
            continue
        over = time.perf_counter() - started > sampling.max_seconds * len(series)
        if over or all(_is_enough(each, sampling, seed) for each in series):
            return rounds
        next_look = math.ceil(rounds * _MORE)


def _is_enough(series: Series, sampling: GenerationSampling, seed: int) -> bool:
    return series.seconds >= sampling.min_seconds and is_precise(series, sampling.precision, seed=seed)
