"""Puts a language model under load, after the scenarios of MLPerf Inference (arXiv:1911.02549, section 4).

Multi-stream and offline are several conversations that move on together, so that they share the reading of the
weights; server is prompts that arrive at random and are answered one after another; sustained is answers without a
pause. What a classifier does is in `load.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgekit.benchmarking.file_cache import read_into_cache
from edgekit.benchmarking.generation_process import GenerationProcess, GenerationSubject, Query, WrittenTogether
from edgekit.benchmarking.load import RateSearch, Service, Taken, seek_rate, sustain
from edgekit.benchmarking.statistics import mean_interval, quantile_interval
from edgekit.events import Event, EventSink
from edgekit.results import Conversations, ConversationsAtOnce, GenerationDepth, Interval, Server, Sustained
from edgekit.runtimes.protocol import model_files

STAGE = "bench"
NUMBERS = (1, 2, 4, 8)
"""Conversations at once of the scenario offline."""
_SEARCH = RateSearch(queries=400, trial_s=0.0, undecided_factor=2, lowest=0.25, steps=4)
"""An answer takes far longer than a classifier's row: fewer of them, and none at rates that hardly load the model."""
_SLOWEST = 5
"""Times the usual time that one answer may take."""


@dataclass(frozen=True)
class Load:
    """What is written, and how often."""

    depth: int
    """Tokens of every prompt."""
    new_tokens: int
    """Tokens written after the first one."""
    context_length: int
    """Tokens that a session makes room for, in each conversation."""
    seed: int
    timeout_s: float
    min_runs: int = 6
    """Runs at least; six bound a median from both sides."""
    min_seconds: float = 3.0
    """Seconds of writing at least, for each number of conversations."""


@dataclass
class _Numbered:
    """The runs of one number of conversations."""

    process: GenerationProcess
    prompts: list[list[int]]
    runs: list[WrittenTogether] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(run.first_token_ns + sum(run.token_ns) for run in self.runs) / 1e9


def write_together(
    subject: GenerationSubject,
    scenario: Literal["multi-stream", "offline"],
    prompts: Sequence[list[int]],
    load: Load,
    events: EventSink,
) -> Conversations:
    """Measures `NUMBERS` (offline), or one conversation and as many as there are prompts (multi-stream), in turn.

    Every number has a fresh process of its own, all of them open at once; every other round goes backwards.

    Raises:
        UnsupportedError: the runtime writes one conversation only.
        ModelError: the runtime cannot open the model.
        MeasurementError: a process died or hung.
    """
    numbers = NUMBERS if scenario == "offline" else (1, len(prompts))
    read_into_cache(model_files(subject.model))
    with ExitStack() as stack:
        series = [
            _Numbered(stack.enter_context(_open(replace(subject, conversations=number), load)), list(prompts[:number]))
            for number in numbers
        ]
        for each in series:
            _run(each, load)  # memory of the new shapes is made here
        rounds = 0
        while rounds < load.min_runs or any(each.seconds < load.min_seconds for each in series):
            events(Event("progress", stage=STAGE, text="conversations at once", completed=rounds, total=load.min_runs))
            for each in reversed(series) if rounds % 2 else series:
                each.runs.append(_run(each, load))
            rounds += 1
        found = [_summarize(each, load.seed) for each in series]
    return Conversations(
        scenario=scenario, context_tokens=load.depth, new_tokens=load.new_tokens, rounds=rounds, numbers=found
    )


def serve_prompts(
    subject: GenerationSubject, alone: GenerationDepth, bound_ms: float, load: Load, events: EventSink
) -> Server:
    """Seeks the highest rate of prompts, arriving at random, whose first token keeps the bound at the p99.

    One prompt is answered after another, in the order in which they arrive; waiting counts. See `load.seek_rate`.

    Args:
        subject: the model.
        alone: its times without anybody waiting, at the depth of the prompts.
        bound_ms: what 99 of 100 prompts may wait for the first token.
        load: the prompts and their answers.
        events: told of progress.

    Raises:
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    busy_ms = alone.first_token_ms + 1e3 * load.new_tokens / alone.decode_tokens_per_s
    query = Query(load.depth, load.new_tokens, _SLOWEST * busy_ms / 1e3)
    with _open(subject, load) as process:
        process.write(load.depth, load.new_tokens)

        def serve(arrivals_ns: list[int], give_up_ns: int) -> list[int]:
            return process.serve(query, arrivals_ns, give_up_ns)

        found = seek_rate(serve, _SEARCH, Service(bound_ms, load.seed, load.timeout_s), busy_ms, events)
    return found.model_copy(update={"context_tokens": load.depth, "new_tokens": load.new_tokens})


def write_sustained(subject: GenerationSubject, seconds: float, load: Load, events: EventSink) -> Sustained:
    """Writes answer after answer for `seconds`; a window's times are those between tokens.

    Raises:
        ModelError: the runtime cannot open the model.
        MeasurementError: the process died or hung.
    """
    with _open(subject, load) as process:
        process.write(load.depth, load.new_tokens)

        def take(window_s: float) -> Taken:
            tokens: list[int] = []
            span_ns = 0
            while span_ns < window_s * 1e9:
                run = process.write(load.depth, load.new_tokens)
                tokens += run.token_ns
                span_ns += run.first_token_ns + sum(run.token_ns)
            return Taken(tokens, span_ns)

        return sustain(take, seconds, events)


def _open(subject: GenerationSubject, load: Load) -> GenerationProcess:
    return GenerationProcess(subject, load.context_length, load.timeout_s)


def _run(each: _Numbered, load: Load) -> WrittenTogether:
    """Returns the times of one run; a session of one conversation writes as it always does."""
    if len(each.prompts) > 1:
        return each.process.write_together(each.prompts, load.new_tokens)
    alone = each.process.write(load.depth, load.new_tokens)
    return WrittenTogether(alone.first_token_ns, alone.token_ns)


def _summarize(each: _Numbered, seed: int) -> ConversationsAtOnce:
    number = len(each.prompts)
    firsts = [run.first_token_ns / 1e6 for run in each.runs]
    spans = [sum(run.token_ns) / 1e9 for run in each.runs]
    gaps = [gap / 1e6 for run in each.runs for gap in run.token_ns]
    tokens = number * len(each.runs[0].token_ns)
    interval = mean_interval(spans, seed=seed)
    return ConversationsAtOnce(
        conversations=number,
        tokens_per_s=tokens / math.fsum(spans) * len(spans),
        tokens_per_s_interval=Interval(
            low=tokens / interval.high, high=tokens / interval.low, confidence=interval.confidence
        ),
        first_token_ms=float(np.median(firsts)),
        first_token_interval_ms=quantile_interval(firsts, 0.5),
        inter_token_p50_ms=float(np.quantile(gaps, 0.5)),
        inter_token_p95_ms=float(np.quantile(gaps, 0.95)),
        inter_token_p99_ms=float(np.quantile(gaps, 0.99)),
        peak_rss_bytes=each.process.memory().peak_bytes,
    )
