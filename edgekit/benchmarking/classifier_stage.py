"""What the stage `bench` does for classifiers: measures one, or two that take turns, and publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, publish
from edgekit.benchmarking.harness import compare, measure
from edgekit.benchmarking.memory_limit import find_smallest_limit
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import VARIANTS, Scenario, random_scenario, text_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import UsageError
from edgekit.results import Comparison
from edgekit.runtimes.protocol import runtime_for

if TYPE_CHECKING:
    from edgekit.benchmarking.stage import BenchConfig

MEASUREMENT_FILE = "measurement.json"
COMPARISON_FILE = "comparison.json"


def bench_classifier(inputs: StageInputs, config: BenchConfig, context: StageContext) -> Artifact:
    """Measures a classifier; with a reference, the two take turns.

    Raises:
        UsageError: more threads than cores, a length beyond the model's, no runtime opens the model, or a setting that
            is for language models.
        ModelError: the runtime cannot open the model.
        MeasurementError: a measuring process died or hung.
    """
    if config.sweep_threads or config.sweep_runtimes or config.depths:
        raise UsageError("bench: depths, sweep_threads and sweep_runtimes are for language models; found a classifier.")
    model = inputs.require("model", "bench")
    subject, sampling = _subject(model, config.runtime, inputs, config, context.seed), _sampling(config)
    comparison: Comparison | None = None
    if inputs.reference is None:
        measurement = measure(subject, sampling, context.events)
    else:
        other = _subject(inputs.reference, _reference_runtime(config, inputs), inputs, config, context.seed)
        comparison = compare(subject, other, sampling, seed=context.seed, events=context.events)
        measurement = comparison.first
    if config.memory_limit_mib == "smallest":
        found = find_smallest_limit(_attempt(subject, config.timeout_s), measurement.peak_rss_bytes, context.events)
        measurement = measurement.model_copy(update={"smallest_memory": found})
        comparison = comparison and comparison.model_copy(update={"first": measurement})
    with publish(context.out, kind="measurement", lineage=lineage_of("bench", inputs, config, context)) as directory:
        (directory / MEASUREMENT_FILE).write_text(measurement.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if comparison is not None:
            (directory / COMPARISON_FILE).write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Artifact.open(context.out)


def _attempt(subject: Subject, timeout_s: float) -> Callable[[int], None]:
    """Returns what opens and runs the model once on each batch, in a fresh process under a limit in bytes."""

    def attempt(limit_bytes: int) -> None:
        with MeasuringProcess(replace(subject, memory_limit_bytes=limit_bytes), timeout_s) as process:
            process.sample(VARIANTS, timeout_s)

    return attempt


def _subject(model: Artifact, runtime: str | None, inputs: StageInputs, config: BenchConfig, seed: int) -> Subject:
    scenario = _scenario(model, inputs, config, seed)
    limit = config.memory_limit_bytes if model is inputs.model else None
    return Subject(model, runtime_for(model, runtime), scenario, config.threads, memory_limit_bytes=limit)


def _scenario(model: Artifact, inputs: StageInputs, config: BenchConfig, seed: int) -> Scenario:
    if config.inputs == "random":
        return random_scenario(model, config.batch, config.length, seed=seed)
    from edgekit.data.prepared import PreparedData

    texts = PreparedData.open(inputs.require("data", "bench")).split("test").texts
    return text_scenario(model, texts, config.batch, config.length, seed=seed)


def _reference_runtime(config: BenchConfig, inputs: StageInputs) -> str | None:
    """Returns the runtime for the reference: the model's, where both are of one kind, else the reference's own."""
    assert inputs.model is not None
    assert inputs.reference is not None
    return config.runtime if inputs.reference.kind == inputs.model.kind else None


def _sampling(config: BenchConfig) -> Sampling:
    return Sampling(
        min_samples=config.min_samples,
        min_seconds=config.min_seconds,
        interval_width=config.interval_width,
        decide_p95_ms=config.decide_p95_ms,
        max_seconds=config.max_seconds,
        pairs=config.pairs,
        margin=config.margin,
        energy_csv=config.energy_file,
        timeout_s=config.timeout_s,
    )
