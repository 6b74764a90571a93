"""What a model does under load, after MLPerf Inference: many at once, at a rate of arrivals, for minutes on end."""

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


class ConversationsAtOnce(Result):
    """How fast a language model writes so many conversations that move on together, one token of each at a time."""

    conversations: int = Field(ge=1)
    tokens_per_s: float
    """Of all conversations together, after the first tokens."""
    tokens_per_s_interval: Interval
    first_token_ms: float
    """Median time from all prompts to the first token of each."""
    first_token_interval_ms: Interval
    inter_token_p50_ms: float
    """Quantiles of the time between a token and the next of one conversation."""
    inter_token_p95_ms: float
    inter_token_p99_ms: float
    peak_rss_bytes: int
    """VmHWM of a process of its own, with the caches of all."""


class Conversations(Result):
    """How much more a language model writes when several conversations share the reading of its weights."""

    scenario: Literal["multi-stream", "offline"]
    """`multi-stream`: one and as many as were asked for; `offline`: rising numbers."""
    context_tokens: int = Field(ge=1)
    """Tokens of each prompt."""
    new_tokens: int = Field(ge=1)
    """Tokens written after the first one in each run."""
    rounds: int
    """Runs of each number, in turn."""
    numbers: list[ConversationsAtOnce] = Field(min_length=1)
    """By rising number of conversations."""

    @property
    def best(self) -> ConversationsAtOnce:
        """Returns the number with the most tokens a second."""
        return max(self.numbers, key=lambda each: each.tokens_per_s)


class ServerTrial(Result):
    """Queries that arrived at random at one rate, and how long they took, waiting included.

    A classifier's query is one row, and takes until its logits; a language model's is one prompt and its answer, and
    takes until the first token.
    """

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
    context_tokens: int | None = None
    """Of a language model: tokens of each prompt. The bound is on its first token."""
    new_tokens: int | None = None
    """Of a language model: tokens of each answer after the first one."""
    p99_bound_ms: float
    rate_per_s: float | None
    """The highest rate that was met; None: not even the lowest that was tried."""
    utilization: float | None
    """The share of the time that the model is busy at that rate, by the median time of a query, answer included."""
    trials: list[ServerTrial]
    """In the order in which they were run."""


class SustainedWindow(Result):
    """Some seconds of calls back to back; a language model's are the steps of its answers, a token each."""

    start_s: float
    """Since the first call."""
    p50_ms: float
    p95_ms: float
    calls: int
    span_s: float | None = None
    """Seconds that it took, reading of prompts included; None in files of older versions."""


class Sustained(Result):
    """Whether minutes of work slow a device down: heat lowers its clock."""

    scenario: Literal["sustained"] = "sustained"
    windows: list[SustainedWindow] = Field(min_length=2)
    slowdown: float
    """Median p50 of the last quarter of the windows over that of the first: 1.2 is 20 % slower at the end."""
    worst_slowdown: float
    """The same of the slowest window."""


UnderLoad = Offline | Server | Sustained
"""Of a classifier."""
GenerationUnderLoad = Conversations | Server | Sustained
"""Of a language model."""
