"""How fast one call of a model is and what memory its process takes, as measured; and two models in turn."""

from __future__ import annotations

from pydantic import Field

from edgekit.results.base import Interval, Result, SavedResult
from edgekit.results.conditions import Conditions
from edgekit.results.energy import Energy
from edgekit.results.generation import GenerationMeasurement
from edgekit.results.headline import Timing
from edgekit.results.load import UnderLoad
from edgekit.results.machine import Machine
from edgekit.results.memory import MemoryLimit, MemorySplit
from edgekit.results.verdict import Verdict


class Measurement(SavedResult):
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
    calls_per_sample: int = 1
    """Calls that a sample is the mean of, at most: more than 1 where the clock is too coarse for one (a browser's)."""
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
    mad_ms: float | None = None
    """Median absolute deviation of the samples from p50; None in files of older versions."""
    outliers: int | None = None
    """Samples that lie further from p50 than 3.5 times 1.4826 `mad_ms`. They count like all others."""
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
    page_bytes: int | None = None
    """In a browser: what `performance.measureUserAgentSpecificMemory()` counts at the end; None where there is none."""
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
    under_load: UnderLoad | None = None
    """What it did in the scenario that was asked for besides; None where none was."""
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
    def timing(self) -> Timing:
        """Returns the times of one call."""
        return Timing(
            samples_ms=self.samples_ms,
            p50_ms=self.p50_ms,
            p50_interval_ms=self.p50_interval_ms,
            p95_ms=self.p95_ms,
            p95_interval_ms=self.p95_interval_ms,
            p99_ms=self.p99_ms,
            p99_interval_ms=self.p99_interval_ms,
        )


class Comparison(Result):
    """Two models measured in turn in one run."""

    first: Measurement
    second: Measurement
    ratio_p50: float
    """p50 of the second over p50 of the first, the geometric mean over the pairs of processes of each pair's median
    over its rounds: above 1, the first is faster."""
    ratio_interval: Interval
    """Bootstrap interval that draws whole pairs of processes."""
    rounds: int
    """Times that the two took turns."""
    pair_ratios: list[float] = []
    """The median ratio of each pair of processes, in order; empty in files of older versions."""
    margin: float = Field(default=0.03, gt=0)
    """Differences of speed up to this share do not count."""
    verdict: Verdict | None = None
    """Of the first against the second; None in files of older versions."""


class TurnRatio(Result):
    """One classifier against the first of a sweep."""

    measurement: int = Field(ge=1)
    """Place in `Sweep.measurements`."""
    ratio_p50: float
    """Its p50 over the first's, as in `Comparison`: above 1, the first is faster."""
    ratio_interval: Interval
    """Bootstrap interval that draws whole sets of processes."""
    margin: float = Field(gt=0)
    """Differences of speed up to this share do not count."""
    verdict: Verdict
    """Of the first against it."""


class Sweep(Result):
    """Classifiers, runtimes or numbers of threads that were measured in turn in one run."""

    names: list[str]
    """What each is called."""
    measurements: list[Measurement] = Field(min_length=2)
    """In the same order."""
    ratios: list[TurnRatio]
    """Each of the others against the first, in the same order."""
    rounds: int
    """Times that all took turns."""
    sets: int
    """Fresh sets of processes."""


AnyMeasurement = Measurement | GenerationMeasurement
