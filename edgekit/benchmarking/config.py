"""The configurations of the stages `evaluate` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgekit.benchmarking.questions import QuestionsConfig
from edgekit.contract import StageConfig


class EvaluateConfig(StageConfig):
    """What to judge a model on."""

    splits: list[str] = Field(default=["test"], min_length=1)
    """Splits of the data to evaluate on, all their rows together; for a classifier they must have labels."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows to evaluate, from the start of each split; all by default."""
    batch_size: int | None = Field(default=None, ge=1)
    """Texts a call. By default 1 for an export, as it ships, and 64 for a torch model."""
    max_tokens: int = Field(default=512, ge=2)
    """Language models: tokens of each text that are judged, from its start; at most the model's context."""
    multiple_choice: QuestionsConfig | None = None
    """Language models: questions to answer besides, each with a few possible answers."""
    answers: int = Field(default=8, ge=0)
    """Language models: prompts to answer besides, from the start of each split that holds conversations; 0: none."""
    answer_tokens: int = Field(default=48, ge=1)
    """Language models: tokens after which an answer is cut."""
    runtime: str | None = None
    """Runtime to run the model with; by default the one that opens such a model."""


class BenchConfig(StageConfig):
    """What to measure, and for how long."""

    device: str = "local"
    """Where it runs: `local`, or `ssh://USER@HOST:PORT` for a classifier on another machine."""
    device_python: str = "python3"
    """Python on that machine, which has the runtime: a name or a path there."""
    runtime: str | None = None
    """Runtime to measure with; by default the one that opens such a model."""
    sweep_runtimes: list[str] = []
    """Further runtimes, measured in turn with the first."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads that one call may use; the process is pinned to as many cores."""
    sweep_threads: list[Annotated[int, Field(ge=1, le=1024)]] = []
    """Further numbers of threads, measured in turn with the first."""
    batch: int = Field(default=1, ge=1)
    """Rows a call; language models: conversations at once, with `multi-stream`."""
    length: int = Field(default=64, ge=1)
    """Tokens a row, all of them attended to."""
    inputs: Literal["random", "texts"] = "random"
    """`random` draws token ids from the seed; `texts` takes those of real texts, of the data's test split. A language
    model goes on from real texts whenever there is data."""
    depths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Language models: tokens of the prompts to write after; by default 16, 128 and 512, as far as there is room."""
    new_tokens: int = Field(default=32, ge=1)
    """Language models: tokens written after the first one in each run."""
    min_samples: int = Field(default=30, ge=2)
    """Samples at least; of a language model see `min_runs`."""
    min_runs: int = Field(default=6, ge=2)
    """Language models: runs at each depth at least; 6 bound a median from both sides."""
    min_seconds: float = Field(default=3.0, gt=0)
    """Seconds of sampling at least."""
    interval_width: float | None = Field(default=None, gt=0, lt=1)
    """Sampling goes on until the 95 % interval is at most this share of its value wide (0.02: 2 %), up to
    `max_seconds`: of p50, of the ratio of two classifiers, of a language model's decode speed at every depth, there
    0.06 by default."""
    decide_p95_ms: float | None = Field(default=None, gt=0)
    """A p95 limit to decide: sampling goes on until the interval clears it, up to `max_seconds`."""
    max_seconds: float = Field(default=30.0, gt=0)
    """Seconds of sampling at most when a limit is to be decided or an interval is still wide."""
    pairs: int = Field(default=8, ge=5)
    """With a reference, classifiers: fresh pairs of processes in which the two take turns; whole pairs are what the
    interval of their ratio draws."""
    margin: float = Field(default=0.03, gt=0, lt=1)
    """With a reference: differences of speed up to this share do not count in the verdict."""
    scenario: Literal["single-stream", "multi-stream", "offline", "server", "sustained"] = "single-stream"
    """After MLPerf Inference: what is looked at besides single calls. `multi-stream` is a batch of more than one,
    judged by its p99; `offline` the throughput of batches of 1 to 64; `server` the highest rate of arrivals whose p99
    keeps `p99_bound_ms`; `sustained` the slowdown over `sustained_s`. Language models, after prompts of the middle one
    of the depths: `multi-stream` is `batch` conversations at once, `offline` 1 to 8 of them; of `server` the time to
    the first token is bounded, one prompt being answered after another."""
    p99_bound_ms: float | None = Field(default=None, gt=0)
    """With `server`: what 99 of 100 queries may take at most, waiting included."""
    sustained_s: float = Field(default=120.0, ge=2)
    """With `sustained`: seconds of calls without a pause."""
    memory_limit_mib: Literal["smallest"] | Annotated[int, Field(ge=1)] | None = None
    """Memory that the model's process may have, MiB (RLIMIT_DATA, Linux): not to run in it is an error. A reference has
    no limit.
    `smallest` measures without a limit and then finds the smallest one that the model still runs in."""
    energy_csv: str | None = None
    """File of a power meter, with the columns time and watts, that is written meanwhile; by default the processor's
    RAPL counters, where there are any."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one call, or the load, may take before it counts as hung."""

    @model_validator(mode="after")
    def _check_scenario(self) -> Self:
        if (self.scenario == "server") != (self.p99_bound_ms is not None):
            found = "no p99_bound_ms" if self.scenario == "server" else "p99_bound_ms"
            raise ValueError(f"scenario {self.scenario}: found {found}; the scenario server, and it alone, has one.")
        if self.scenario == "multi-stream" and self.batch == 1:
            raise ValueError("scenario multi-stream: found a batch of 1, expected the number of streams, as 8.")
        if self.scenario in ("offline", "server") and self.batch != 1:
            raise ValueError(f"scenario {self.scenario}: found a batch of {self.batch}, expected 1.")
        return self

    @property
    def memory_limit_bytes(self) -> int | None:
        """Returns the limit that is set, or None."""
        return self.memory_limit_mib * 2**20 if isinstance(self.memory_limit_mib, int) else None

    @property
    def energy_file(self) -> Path | None:
        """Returns the meter's file, or None."""
        return None if self.energy_csv is None else Path(self.energy_csv)
