"""A language model in a measuring process of its own, as the parent sees it."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.benchmarking.worker_process import Opened, WorkerProcess, WorkerSettings
from edgekit.runtimes.generation import GenerationRuntime

_MODULE = "edgekit.benchmarking.generation_worker"


@dataclass(frozen=True)
class GenerationSubject:
    """One language model, the runtime that runs it, and what it goes on from."""

    model: Artifact
    runtime: GenerationRuntime
    prompt: list[int]
    """Tokens of the longest prompt; a shorter one is its beginning."""
    threads: int = 1
    label: str = ""
    """What tables call it; empty: made of the others."""
    memory_limit_bytes: int | None = None
    """RLIMIT_DATA of its processes; None: none."""
    conversations: int = 1
    """Conversations that its process writes at once."""

    @property
    def name(self) -> str:
        """Returns how errors and progress call it."""
        return f"{self.model.path} in {self.runtime.name}"


@dataclass(frozen=True)
class Written:
    """The times of one run, ns."""

    prefill_ns: int
    """From the prompt to its logits."""
    first_token_ns: int
    """The same, and the choice of a token."""
    token_ns: list[int]
    """From each token to the next."""


@dataclass(frozen=True)
class WrittenTogether:
    """The times of one run of several conversations, ns."""

    first_token_ns: int
    """From the prompts to the first token of each."""
    token_ns: list[int]
    """From each token to the next, one of every conversation."""


@dataclass(frozen=True)
class Query:
    """What is asked for, and how long that takes."""

    depth: int
    """Tokens of the prompt."""
    new_tokens: int
    """Tokens written after the first one."""
    most_s: float
    """Seconds that one may take."""


class GenerationProcess(WorkerProcess):
    """A fresh process that has opened one language model; use it in a `with` statement, which ends it."""

    opened: Opened

    def __init__(self, subject: GenerationSubject, context_length: int, timeout_s: float) -> None:
        """Starts nothing yet; `context_length` is what the session makes room for, tokens."""
        settings = WorkerSettings(subject.threads, timeout_s, subject.memory_limit_bytes)
        super().__init__(_MODULE, subject.name, settings)
        self.subject = subject
        self.context_length = context_length

    def prepare(self) -> None:
        """Opens the model.

        Raises:
            ModelError: the runtime cannot open the model.
            UsageError: the model has a shorter context.
            MeasurementError: the process died or hung.
        """
        subject = self.subject
        self.opened = self.open_model(
            subject.model, subject.runtime, context_length=self.context_length, conversations=subject.conversations
        )

    def write(self, depth: int, new_tokens: int, *, watch: bool = False) -> Written:
        """Returns the times of writing `new_tokens` after the first one, after a prompt of `depth` tokens.

        With `watch` the memory is looked at meanwhile: while warming up, not while it counts.
        """
        return Written(**self.ask("write", watch=watch, prompt=self.subject.prompt[:depth], new_tokens=new_tokens))

    def write_together(self, prompts: list[list[int]], new_tokens: int) -> WrittenTogether:
        """Returns the times of writing `new_tokens` after the first one in every conversation, one prompt for each."""
        return WrittenTogether(**self.ask("write_together", prompts=prompts, new_tokens=new_tokens))

    def serve(self, query: Query, arrivals_ns: list[int], give_up_ns: int) -> list[int]:
        """Returns for each arrival, ns since the start, the time until its first token, ns, waiting included.

        It ends early once a first token took longer than `give_up_ns`.
        """
        span_s = (arrivals_ns[-1] + give_up_ns) / 1e9 + query.most_s * len(arrivals_ns)
        latencies: list[int] = self.ask(
            "serve",
            extra_s=span_s,
            prompt=self.subject.prompt[: query.depth],
            new_tokens=query.new_tokens,
            arrivals_ns=arrivals_ns,
            give_up_ns=give_up_ns,
        )["latencies_ns"]
        return latencies
