"""`edgekit bench`: latency and memory of one model, or of several in turn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from edgekit.cli.compare import require_comparable, show_changes
from edgekit.cli.options import AsJson, Seed, checked_config
from edgekit.cli.results import conclude
from edgekit.cli.terminal import listening

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.benchmarking.changes import Named

Value = TypeVar("Value")
Several = Annotated[list[Value], Parameter(consume_multiple=True, negative="")]


def bench(
    model: Path,
    out: Path | None = None,
    *,
    device: str = "local",
    device_python: str = "python3",
    runtime: Several[str] | None = None,
    all_runtimes: Annotated[bool, Parameter(negative="")] = False,
    threads: Several[int] = [1],  # noqa: B006 (never changed)
    batch: int = 1,
    length: int = 64,
    inputs: Literal["random", "texts"] = "random",
    depths: Several[int] | None = None,
    new_tokens: int = 32,
    data: Path | None = None,
    min_samples: int = 30,
    min_runs: int = 6,
    min_seconds: float = 3.0,
    interval_width: float | None = None,
    decide_p95_ms: float | None = None,
    max_seconds: float = 30.0,
    scenario: Literal["single-stream", "multi-stream", "offline", "server", "sustained"] = "single-stream",
    p99_bound_ms: float | None = None,
    sustained_s: float = 120.0,
    memory_limit_mib: Annotated[
        int | Literal["smallest"] | None, Parameter(name=["--memory-limit", "--memory-limit-mib"])
    ] = None,
    energy_csv: str | None = None,
    timeout_s: float = 120.0,
    pairs: int = 8,
    margin: float = 0.03,
    compare: Annotated[Path | None, Parameter(name=["--compare", "--reference"])] = None,
    baseline: Path | None = None,
    baseline_margin: float = 0.1,
    anyway: Annotated[bool, Parameter(negative="")] = False,
    markdown: Path | None = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> int:
    """Measure latency and memory in fresh processes; with --compare, two models in turn in one run.

    With several runtimes or numbers of threads all of them take turns. A language model is measured writing.

    Parameters
    ----------
    model
        A model or an export: an artifact directory, or a bundle.
    out
        Where to keep the measurement with its raw samples; without it, it is only shown.
    device
        Where a classifier runs: local, or ssh://USER@HOST:PORT, any Linux machine with Python 3.11 and the runtime that
        ssh reaches without a password. What is copied there is removed afterwards. Name OUT: samples are kept beside
        it while they come, should the device disappear.
    device_python
        Python on the device, a name or a path there.
    runtime
        Runtime that runs it; by default onnxruntime for exports, torch for models and llama.cpp for GGUF. Several
        take turns, and are compared with the first.
    all_runtimes
        Every runtime at hand that opens the model, the one by default first. `edgekit doctor` says what is at hand.
    threads
        Threads that one call may use. Several numbers take turns as well.
    batch
        Rows a call of a classifier; conversations at once of a language model, with --scenario multi-stream.
    length
        Tokens a row of a classifier.
    inputs
        Token ids from the seed, or those of real texts, which --data gives.
    depths
        Tokens of the prompts that a language model goes on from; by default 16, 128 and 512, as far as there is room.
    new_tokens
        Tokens that a language model writes after the first one in each run.
    data
        Prepared data, the text of whose test split is the input.
    min_samples
        Samples of a classifier at least.
    min_runs
        Runs of a language model at each depth at least.
    min_seconds
        Seconds of sampling at least.
    interval_width
        Sample until the 95 % interval is at most this share of its value wide (0.02: 2 %), up to --max-seconds: of
        p50, of the ratio with --compare, of a language model's decode speed.
    decide_p95_ms
        A p95 limit of a classifier to decide: sampling goes on until the interval clears it, up to --max-seconds.
    max_seconds
        Seconds of sampling at most while a limit is to be decided or an interval is still wide.
    scenario
        What is looked at besides single calls, after MLPerf Inference. multi-stream: a batch of more than one, judged
        by its p99; of a language model --batch conversations at once. offline: the throughput of batches of 1 to 64,
        or of 1 to 8 conversations. server: the highest rate of random arrivals whose p99 keeps --p99-bound-ms; of a
        language model that of the first token. sustained: the slowdown over --sustained-s.
    p99_bound_ms
        With --scenario server: what 99 of 100 queries may take at most, waiting included.
    sustained_s
        With --scenario sustained: seconds of calls without a pause.
    memory_limit_mib
        Memory that the model's process may have, MiB: not to run in it is an error, exit code 1. `smallest`
        finds the least that the model runs in, after measuring it without a limit. Linux only.
    energy_csv
        File that a power meter writes meanwhile, with the columns time and watts; without it the processor's RAPL
        counters are read, where there are any.
    timeout_s
        Seconds that one call or run, or the load, may take before it counts as hung.
    pairs
        With --compare: fresh pairs of processes in which two classifiers take turns, at least 5.
    margin
        With --compare: differences of speed up to this share do not count in the verdict.
    compare
        Another model: the two take turns, and how they compare is given with its interval and a verdict.
    baseline
        A saved measurement, or the build.json of a build with one export, to compare with: exit code 1 when this model
        is worse.
    baseline_margin
        With --baseline: differences of speed up to this share do not count; it was measured apart.
    anyway
        With --baseline: compare with one of another machine, schema or scenario, too.
    markdown
        With --baseline: write the comparison to this file, as Markdown for a pull request.
    """
    from edgekit.api import run
    from edgekit.artifact import Artifact
    from edgekit.benchmarking.changes import Named
    from edgekit.benchmarking.devices import refuse_emulated
    from edgekit.benchmarking.result_files import read_measurement
    from edgekit.benchmarking.stage import BenchConfig
    from edgekit.errors import UsageError

    earlier = None if baseline is None else read_earlier(baseline, anyway=anyway)
    opened = Artifact.open(model)
    runtimes = _runtimes(opened, runtime, all_runtimes=all_runtimes)
    refuse_emulated(device)
    if device != "local" and out is None:
        raise UsageError("edgekit bench: found --device without OUT, expected a place to keep what is measured.")
    settings = {
        "device": device,
        "device_python": device_python,
        "runtime": runtimes[0],
        "sweep_runtimes": runtimes[1:],
        "threads": threads[0],
        "sweep_threads": threads[1:],
        "batch": batch,
        "length": length,
        "inputs": inputs,
        "depths": depths,
        "new_tokens": new_tokens,
        "min_samples": min_samples,
        "min_runs": min_runs,
        "min_seconds": min_seconds,
        "interval_width": interval_width,
        "decide_p95_ms": decide_p95_ms,
        "max_seconds": max_seconds,
        "scenario": scenario,
        "p99_bound_ms": p99_bound_ms,
        "sustained_s": sustained_s,
        "memory_limit_mib": memory_limit_mib,
        "energy_csv": energy_csv,
        "timeout_s": timeout_s,
        "pairs": pairs,
        "margin": margin,
    }
    config = checked_config(BenchConfig, settings, "edgekit bench")
    roles: dict[str, Any] = {role: path for role, path in (("reference", compare), ("data", data)) if path is not None}
    with tempfile.TemporaryDirectory() as scratch:
        place = out or Path(scratch) / "measurement"
        with listening(as_json=json) as events:
            artifact = run("bench", opened, config, out=place, seed=seed, events=events, **roles)
        code = conclude(
            artifact, as_json=json, shown_path=out or Path("(not kept: name an output directory to keep it)")
        )
        if earlier is None:
            return code
        later = Named(str(model), read_measurement(artifact))
        require_comparable(earlier, later.result, anyway=anyway)
        return show_changes(earlier, later, margin=baseline_margin, markdown=markdown, as_json=json)


def _runtimes(model: Artifact, asked: list[str] | None, *, all_runtimes: bool) -> list[str | None]:
    """Returns the names of the runtimes to measure with, None for the usual one.

    Raises:
        UsageError: both names and all of them were asked for.
    """
    from edgekit.benchmarking.stage import is_language_model
    from edgekit.errors import UsageError
    from edgekit.runtimes.generation import generation_runtimes_for
    from edgekit.runtimes.protocol import available_runtimes_for, format_of

    if not all_runtimes:
        return [*asked] if asked else [None]
    if asked:
        raise UsageError("edgekit bench: found --runtime and --all-runtimes, expected one of them. Leave one out.")
    find = generation_runtimes_for if is_language_model(model) else available_runtimes_for
    return [runtime.name for runtime in find(format_of(model))] or [None]


def read_earlier(baseline: Path, *, anyway: bool) -> Named:
    """Returns the baseline, after a look at what can be known before anything is measured.

    Raises:
        UsageError: it holds no measurement, or, unless `anyway`, was taken on another machine or has another schema.
    """
    from edgekit.benchmarking.changes import Named
    from edgekit.benchmarking.machine import machine_fingerprint
    from edgekit.benchmarking.saved import read_baseline

    earlier = Named(str(baseline), read_baseline(baseline, any_schema=anyway))
    here = earlier.result.model_copy(update={"machine": machine_fingerprint()})
    require_comparable(earlier, here, anyway=anyway)
    return earlier
