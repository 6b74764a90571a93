"""What edgekit finds out, as types that every later layer shares: quality, parity, measurements, estimates, budgets.

`Measurement` and `Estimate` are different types on purpose: an estimate never looks like a measurement.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

SCHEMA = 1


class Result(BaseModel):
    """Base of every result: frozen, documented field by field, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Interval(Result):
    """A confidence interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float = 0.95
    """Coverage, 0 to 1."""


class Quality(Result):
    """How well a model does the task on labelled text it never saw."""

    accuracy: float
    """Share of rows with the right label, 0 to 1."""
    accuracy_interval: Interval
    """Wilson score interval of the accuracy."""
    cross_entropy: float
    """Mean negative log likelihood of the right label, nats a row."""
    rows: int
    """Labelled rows evaluated."""
    split: str = "test"
    """Name of the data split; of several, joined by ` + `."""
    teacher_agreement: float | None = None
    """Share of rows on which the teacher gives the same label, 0 to 1; None without a teacher."""
    accuracy_change: float | None = None
    """Accuracy less the teacher's, on the same rows; None without a teacher."""
    accuracy_change_interval: Interval | None = None
    """Interval of `accuracy_change`, by Newcombe's method for paired shares; None without a teacher."""
    per_label_recall: dict[str, float] = {}
    """Label to the share of its rows that were found, 0 to 1."""
    per_label_recall_intervals: dict[str, Interval] = {}
    """Label to the Wilson score interval of its recall."""
    parts: dict[str, Quality] = {}
    """Split to the quality on it alone, where there are several."""
    model_digest: str = ""
    """Digest of the artifact evaluated; empty in `parts`."""


class TokenizerVector(Result):
    """One text and the ids that any tokenizer of the bundle must give."""

    text: str
    """The input text."""
    input_ids: list[int]
    """Token ids with special tokens, truncated to the model's length."""


class Parity(Result):
    """How far an exported file, run by the runtime that ships, is from torch running the same weights."""

    runtime: str
    """The runtime and its version."""
    rows: int
    """Texts compared."""
    max_abs_diff: float
    """Largest absolute difference of any logit."""
    mean_abs_diff: float
    """Mean absolute difference over all logits."""
    median_abs_diff: float | None = None
    """Median over the texts run of each one's largest absolute difference."""
    own_max_abs_diff: float | None = None
    """The same maximum between torch and torch with one part in a million of noise; None where nothing is rounded."""
    own_mean_abs_diff: float | None = None
    """The same mean between torch and torch disturbed."""
    own_median_abs_diff: float | None = None
    """The same median between torch and torch disturbed."""
    share_above_own: float | None = None
    """Share of texts that differ clearly more than torch and torch disturbed do on them, 0 to 1; about a quarter by
    chance, nearly all when the export computes something else."""
    label_agreement: float
    """Share of texts with the same label, 0 to 1."""
    tokenizer_mismatches: int
    """Texts that the bundled tokenizer file encodes differently from transformers."""
    tokenizer_texts: int
    """Texts that both tokenizers encoded."""
    passed: bool
    """True when every threshold held."""
    failures: list[str] = []
    """One sentence for each threshold that did not hold."""
    model_digest: str = ""
    """Digest of the export that was checked."""


class Machine(Result):
    """The fingerprint of the machine that a measurement was taken on."""

    cpu: str
    """Model name of the processor."""
    architecture: str
    """Instruction set family, for example `x86_64` or `aarch64`."""
    cores: int
    """Logical cores that the process may use."""
    memory_bytes: int
    """Physical memory."""
    cpu_features: list[str] = []
    """Vector extensions that matter for kernels (avx2, avx512f, avx512_vnni, asimddp, i8mm ...)."""
    operating_system: str
    """Name and release."""
    python: str
    """Python version."""
    device: str = ""
    """What the firmware calls the device, for example `Raspberry Pi 5 Model B`; empty when it does not say."""


class Measurement(Result):
    """Latency and memory of one model file in one scenario, measured in a fresh process."""

    runtime: str
    """Name of the runtime, for example `onnxruntime`."""
    runtime_version: str
    """Version of the runtime."""
    threads: int
    """Threads that the runtime may use."""
    batch: int
    """Rows a call."""
    length: int
    """Tokens a row."""
    samples_ms: list[float]
    """Every raw sample after the warm-up, in order; evenly thinned out where there are more than 10,000."""
    warmup_runs: int
    """Calls before the spread settled."""
    settled: bool
    """False when the warm-up limit was reached before the spread settled."""
    p50_ms: float
    p50_interval_ms: Interval
    p90_ms: float
    p90_interval_ms: Interval
    p95_ms: float
    p95_interval_ms: Interval
    p99_ms: float
    p99_interval_ms: Interval
    rows_per_s: float
    """Throughput: rows over the total time of the samples."""
    load_ms: float
    """Time to open the model, in the fresh process."""
    peak_rss_bytes: int
    """VmHWM of the process that ran the model."""
    rss_anonymous_bytes: int
    """RssAnon at the end."""
    rss_file_bytes: int
    """RssFile at the end."""
    baseline_rss_bytes: int = 0
    """VmRSS before the runtime was imported: the interpreter itself."""
    library_rss_bytes: int = 0
    """VmRSS after the runtime was imported, before the model was opened; 0 when not known."""
    load_average: float
    """One-minute load average when the measurement began."""
    pinned_cores: list[int]
    """Cores that the process was pinned to; empty when pinning is impossible."""
    machine: Machine
    model_digest: str
    """Digest of the artifact measured."""
    model_bytes: int
    """Size of the model file or files that the runtime reads."""


class Comparison(Result):
    """Two models measured in turn in one run."""

    first: Measurement
    second: Measurement
    ratio_p50: float
    """p50 of the second over p50 of the first: above 1, the first is faster."""
    ratio_interval: Interval
    """Bootstrap interval over the paired rounds."""
    rounds: int
    """Times that the two took turns."""


class Estimate(Result):
    """A figure that nobody measured, with the formula that gave it."""

    quantity: str
    """What is estimated, for example `latency`."""
    low: float
    """Optimistic end: the roofline itself."""
    high: float
    """Pessimistic end: the roofline over the stated efficiency."""
    unit: str
    formula: str
    """The formula with its numbers filled in."""
    assumptions: list[str]
    """What must hold for the estimate to be near."""


CheckStatus = Literal["met", "missed", "inconclusive", "not-measured"]


class BudgetCheck(Result):
    """One limit of a budget and what was found."""

    name: str
    """What is limited: `file_bytes`, `peak_memory_bytes`, `p95_ms` or `quality_drop`."""
    limit: float
    value: float | None
    """What was found; None when it was not measured on such a device."""
    interval: Interval | None = None
    """The value's confidence interval, where it has one."""
    status: CheckStatus
    explanation: str
    """One sentence for people: found, limit, why."""


class BudgetResult(Result):
    """All limits of one export on one target."""

    met: bool
    """True when no check was missed or inconclusive."""
    checks: list[BudgetCheck]


class StageResult(Result):
    """One stage of a build."""

    kind: str
    """Name of the stage in the stage table."""
    seconds: float
    """Wall time; the original run's when cached."""
    cached: bool
    """True when the artifact was already there."""
    quality: Quality
    digest: str = ""
    """Digest of the artifact that the stage made."""
    path: str = ""
    """The artifact, relative to the build's output directory."""
    model_bytes: int = 0
    """Size of the weights file."""
    parameters: int = 0
    """Number of weights."""


class PreparationResult(Result):
    """A step of a build that makes no model of its own: data, import, teacher signal."""

    kind: str
    seconds: float
    cached: bool
    digest: str = ""
    path: str = ""


class ExportResult(Result):
    """One format for one target."""

    format: str
    target: str
    bytes: int
    """Size of the model file or files that ship."""
    parity: Parity
    quality: Quality | None = None
    """Quality of the exported file itself, run by its runtime."""
    measurement: Measurement | None
    """None when the budget of the build left no measurement (parity failed)."""
    float_comparison: Comparison | None = None
    """The export (first) against its own float32 export (second), interleaved."""
    teacher_comparison: Comparison | None = None
    """The export (first) against the teacher's own float32 export (second), interleaved."""
    target_description: str = ""
    """The target in words, from its file."""
    measured_on_target: bool = False
    """True when the machine that measured counts as such a target; otherwise the figures are of another machine."""
    estimates: list[Estimate] = []
    """Figures for the target device that this machine cannot measure."""
    budget: BudgetResult
    bundle: str | None = None
    """The bundle, relative to the build's output directory; None when nothing passed."""
    notes: list[str] = []
    """Things a person should know, such as `int8 is slower than float32`."""


class BuildResult(Result):
    """The whole build: the content of `build.json`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this schema."""
    name: str
    seed: int
    edgekit_version: str = ""
    machine: Machine | None = None
    teacher_quality: Quality | None = None
    teacher_bytes: int = 0
    """Size of the teacher's weights file; 0 when not known."""
    teacher_parameters: int = 0
    """Number of the teacher's weights; 0 when not known."""
    preparation: list[PreparationResult] = []
    stages: list[StageResult]
    exports: list[ExportResult]
    recipe: dict[str, JsonValue] = {}
    """The recipe as it was validated."""
    failures: list[str] = []
    """One sentence for each thing that failed."""
    exit_code: int

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True, serialize_by_alias=True
    )
