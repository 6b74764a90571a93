"""How fast a language model writes and what memory its process takes, as measured."""

from __future__ import annotations

from pydantic import Field

from edgekit.results.base import Interval, Result, SavedResult
from edgekit.results.conditions import Conditions
from edgekit.results.energy import Energy
from edgekit.results.headline import Timing
from edgekit.results.load import GenerationUnderLoad
from edgekit.results.machine import Machine
from edgekit.results.memory import MemoryLimit, MemorySplit
from edgekit.results.verdict import Verdict


class GenerationDepth(Result):
    """Writing after a prompt of one length."""

    context_tokens: int = Field(ge=1)
    """Tokens of the prompt."""
    new_tokens: int = Field(ge=1)
    """Tokens written after the first one in each run."""
    first_token_ms: float
    """Median time from the prompt to the first token: prefill and the choice of a token."""
    first_token_interval_ms: Interval
    prefill_tokens_per_s: float
    """Tokens of the prompt over the median time of prefill."""
    prefill_tokens_per_s_interval: Interval
    decode_tokens_per_s: float
    """Tokens after the first over the time that they took; all runs together."""
    decode_tokens_per_s_interval: Interval
    inter_token_p50_ms: float
    """Quantiles of the time between one token and the next."""
    inter_token_p50_interval_ms: Interval
    inter_token_p95_ms: float
    inter_token_p95_interval_ms: Interval
    inter_token_p99_ms: float
    inter_token_p99_interval_ms: Interval
    first_token_samples_ms: list[float] = Field(min_length=1)
    """Time to the first token of every run after the warm-up, in order."""
    inter_token_samples_ms: list[float] = Field(min_length=1)
    """Time between successive tokens, all runs after the warm-up in order; evenly thinned out above 10,000."""
    bytes_per_token: int | None = None
    """Bytes that one step of decoding must read at this depth: the weights that it uses, and the keys and values of the
    prompt and half of the tokens written; None when not known."""
    roofline_share: float | None = None
    """`decode_tokens_per_s` over memory_bandwidth_bytes_per_s / bytes_per_token, 0 to 1; None when one is not known."""

    @property
    def timing(self) -> Timing:
        """Returns the times between tokens."""
        return Timing(
            samples_ms=self.inter_token_samples_ms,
            p50_ms=self.inter_token_p50_ms,
            p50_interval_ms=self.inter_token_p50_interval_ms,
            p95_ms=self.inter_token_p95_ms,
            p95_interval_ms=self.inter_token_p95_interval_ms,
            p99_ms=self.inter_token_p99_ms,
            p99_interval_ms=self.inter_token_p99_interval_ms,
        )


class DecodeFit(Result):
    """The line through the depths: time of a token = bytes_per_token / bytes_per_s + overhead_ms."""

    bytes_per_s: float
    """Bandwidth that decoding reaches on its bytes."""
    overhead_ms: float
    """Time of a token that no byte explains."""


class GenerationMeasurement(SavedResult):
    """Speed and memory of one language model at several depths of context, measured in fresh processes.

    The fields that `Measurement` has too mean the same there.
    """

    runtime: str
    """Name of the runtime, for example `onnxruntime-genai`."""
    runtime_version: str
    """Version of the runtime."""
    threads: int
    """Threads that the runtime may use."""
    depths: list[GenerationDepth] = Field(min_length=1)
    """One entry for each length of prompt, by rising `context_tokens`."""
    warmup_runs: int
    """Runs at each depth that were not counted."""
    load_cold_ms: float | None
    """Time to open the model with its pages out of the system's file cache; None where they cannot be put out."""
    load_warm_ms: float
    """Time to open the model right after another process read it."""
    memory_bandwidth_bytes_per_s: float | None = None
    """Read bandwidth of the memory with as many threads, measured in the same run; None when it was not."""
    fit: DecodeFit | None = None
    """None with a single depth, where `bytes_per_token` is not known, or where a token's time does not grow with it."""
    context_length: int | None = None
    """Tokens that the session made room for; caches of a fixed size take memory for all of them."""
    peak_rss_bytes: int
    """VmHWM of the process that ran the model."""
    rss_anonymous_bytes: int
    """RssAnon at the end."""
    rss_file_bytes: int
    """RssFile at the end: mapped weights count here."""
    baseline_rss_bytes: int = 0
    """VmRSS before the runtime was imported: the interpreter itself."""
    library_rss_bytes: int = 0
    """VmRSS after the runtime was imported, before the model was opened; 0 when not known."""
    peak_split: MemorySplit | None = None
    """What the resident set was made of at the largest moment that was seen: every 5 ms while the model was opened and
    warmed up, and after every turn; None in files of older versions and where the system does not tell."""
    memory_limit_bytes: int | None = None
    """RLIMIT_DATA that the process ran under; None without one."""
    smallest_memory: MemoryLimit | None = None
    """The least that it runs in; None where that was not asked for."""
    energy: Energy | None = None
    """What the samples cost; None in files of older versions."""
    under_load: GenerationUnderLoad | None = None
    """What it does with many conversations, at a rate of arrivals or for minutes; None where that was not asked for."""
    load_average: float
    """One-minute load average when the measurement began."""
    conditions: Conditions | None = None
    """What else the machine did meanwhile; None in files of older versions."""
    pinned_cores: list[int]
    """Cores that the process was pinned to; empty when pinning is impossible."""
    machine: Machine
    model_digest: str
    """Digest of the artifact measured."""
    model_bytes: int
    """Size of the model file or files that the runtime reads."""

    @property
    def deepest(self) -> GenerationDepth:
        """Returns the depth with the longest context: what budgets and headline figures are about."""
        return max(self.depths, key=lambda depth: depth.context_tokens)

    @property
    def timing(self) -> Timing:
        """Returns the times between tokens at the deepest context."""
        return self.deepest.timing


class GenerationRatio(Result):
    """One language model against the first of a run, at one depth."""

    measurement: int = Field(ge=1)
    """Place in `GenerationComparison.measurements`."""
    context_tokens: int = Field(ge=1)
    """Tokens of the prompt."""
    token_time: float
    """Its time between tokens over the first's: above 1, the first is faster."""
    token_time_interval: Interval
    """Bootstrap interval over the paired rounds."""
    first_token_time: float
    """Its time to the first token over the first's."""
    first_token_time_interval: Interval
    margin: float = Field(default=0.03, gt=0)
    """Differences of speed up to this share do not count."""
    verdict: Verdict | None = None
    """Of the first against it, by the time between tokens; None in files of older versions."""


class GenerationComparison(Result):
    """Language models, runtimes or numbers of threads that were measured in turn in one run."""

    names: list[str]
    """What each is called."""
    measurements: list[GenerationMeasurement] = Field(min_length=1)
    """In the same order."""
    ratios: list[GenerationRatio]
    """Each of the others against the first, at each depth."""
    rounds: int
    """Times that they took turns."""
