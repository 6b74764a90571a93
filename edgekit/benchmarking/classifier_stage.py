"""What the stage `bench` does for classifiers: measures one, or two that take turns, and publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, publish
from edgekit.benchmarking.devices import Device, open_device
from edgekit.benchmarking.harness import compare, measure
from edgekit.benchmarking.journal import Journal
from edgekit.benchmarking.load import Service, run_offline, run_server, run_sustained
from edgekit.benchmarking.memory_limit import find_smallest_limit
from edgekit.benchmarking.naming import label_models
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.result_files import COMPARISON_FILE, MEASUREMENT_FILE, SWEEP_FILE, write_result
from edgekit.benchmarking.scenario import VARIANTS, Scenario, random_scenario, text_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.benchmarking.sweep import measure_in_turn
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import MeasurementError, UsageError
from edgekit.results import Comparison, Sweep, UnderLoad
from edgekit.runtimes.protocol import runtime_for

if TYPE_CHECKING:
    from edgekit.benchmarking.stage import BenchConfig


def bench_classifier(inputs: StageInputs, config: BenchConfig, context: StageContext) -> Artifact:
    """Measures a classifier; a reference, further runtimes and further numbers of threads take turns with it.

    Raises:
        UsageError: more threads than cores, a length beyond the model's, no runtime opens the model, or a setting that
            is for language models.
        ModelError: the runtime cannot open the model.
        MeasurementError: a measuring process died or hung, or the device is gone; the samples until then are kept.
        EnvironmentLacksError: the device cannot be reached, or lacks Python or the runtime.
    """
    if config.depths:
        raise UsageError("bench: depths are for language models; found a classifier.")
    with open_device(config.device, config.device_python) as device:
        if device.is_here:
            return _bench_on(device, None, inputs, config, context)
        journal = Journal(context.out.with_name(f"{context.out.name}.samples.jsonl"))
        try:
            made = _bench_on(device, journal, inputs, config, context)
        except MeasurementError as error:
            if not journal.count:
                raise
            kept = f"The {journal.count:,} samples until then are kept in {journal.file}."
            raise type(error)(f"{error} {kept}") from error
        journal.discard()
        return made


def _bench_on(
    device: Device, journal: Journal | None, inputs: StageInputs, config: BenchConfig, context: StageContext
) -> Artifact:
    model, sampling = inputs.require("model", "bench"), _sampling(config, journal)
    subjects = _subjects(model, inputs, config, context.seed, device)
    for subject in subjects:
        device.version_of(subject.runtime)  # what is missing is told before anything is copied
    comparison: Comparison | None = None
    sweep: Sweep | None = None
    if config.sweep_threads or config.sweep_runtimes:
        sweep = measure_in_turn(subjects, _names(subjects), sampling, seed=context.seed, events=context.events)
        measurement = sweep.measurements[0]
    elif inputs.reference is None:
        measurement = measure(subjects[0], sampling, context.events)
    else:
        comparison = compare(subjects[0], subjects[1], sampling, seed=context.seed, events=context.events)
        measurement = comparison.first
    under_load = _put_under_load(subjects[0], measurement.p50_ms, inputs, config, context)
    measurement = measurement.model_copy(update={"under_load": under_load})
    if config.memory_limit_mib == "smallest":
        found = find_smallest_limit(_attempt(subjects[0], config.timeout_s), measurement.peak_rss_bytes, context.events)
        measurement = measurement.model_copy(update={"smallest_memory": found})
    comparison = comparison and comparison.model_copy(update={"first": measurement})
    sweep = sweep and sweep.model_copy(update={"measurements": [measurement, *sweep.measurements[1:]]})
    with publish(context.out, kind="measurement", lineage=lineage_of("bench", inputs, config, context)) as directory:
        write_result(measurement, directory / MEASUREMENT_FILE)
        write_result(comparison, directory / COMPARISON_FILE)
        write_result(sweep, directory / SWEEP_FILE)
    return Artifact.open(context.out)


def _put_under_load(
    subject: Subject, p50_ms: float, inputs: StageInputs, config: BenchConfig, context: StageContext
) -> UnderLoad | None:
    """Returns what the model does in the scenario that is asked for; None where single calls tell all."""
    if config.scenario == "offline":

        def make_scenario(batch: int) -> Scenario:
            return _scenario(subject.model, inputs, config.model_copy(update={"batch": batch}), context.seed)

        return run_offline(subject, make_scenario, config.timeout_s, context.events)
    if config.scenario == "server" and config.p99_bound_ms is not None:
        service = Service(config.p99_bound_ms, context.seed, config.timeout_s)
        return run_server(subject, service, p50_ms, context.events)
    if config.scenario == "sustained":
        return run_sustained(subject, config.sustained_s, config.timeout_s, context.events)
    return None


def _attempt(subject: Subject, timeout_s: float) -> Callable[[int], None]:
    """Returns what opens and runs the model once on each batch, in a fresh process under a limit in bytes."""

    def attempt(limit_bytes: int) -> None:
        with MeasuringProcess(replace(subject, memory_limit_bytes=limit_bytes), timeout_s) as process:
            process.sample(VARIANTS, timeout_s)

    return attempt


def _subjects(model: Artifact, inputs: StageInputs, config: BenchConfig, seed: int, device: Device) -> list[Subject]:
    """Returns the model in every runtime with every number of threads, the first ones first; then the reference."""
    limit = config.memory_limit_bytes
    here = device.is_here
    runtimes = [
        runtime_for(model, name, must_be_here=here) for name in dict.fromkeys((config.runtime, *config.sweep_runtimes))
    ]
    counts = dict.fromkeys((config.threads, *config.sweep_threads))
    scenario = _scenario(model, inputs, config, seed)
    subjects = [
        Subject(model, runtime, scenario, threads, memory_limit_bytes=limit, device=device)
        for runtime, threads in product(runtimes, counts)
    ]
    if inputs.reference is not None:
        other = runtime_for(inputs.reference, _reference_runtime(config, inputs), must_be_here=here)
        scenario = _scenario(inputs.reference, inputs, config, seed)
        subjects += [Subject(inputs.reference, other, scenario, threads, device=device) for threads in counts]
    return subjects


def _names(subjects: list[Subject]) -> list[str]:
    """Returns what each is called in tables: its directory, runtime and threads."""
    labels = label_models([each.model.path for each in subjects])
    return [f"{labels[each.model.path]}, {each.runtime.name}, {each.threads}T" for each in subjects]


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


def _sampling(config: BenchConfig, journal: Journal | None) -> Sampling:
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
        journal=journal,
    )
