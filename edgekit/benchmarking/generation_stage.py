"""What the stage `bench` does for language models: chooses prompts, runtimes and threads, measures, publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, publish
from edgekit.benchmarking.devices import HERE, refuse_emulated
from edgekit.benchmarking.generation import PRECISION, GenerationSampling, measure_generation
from edgekit.benchmarking.generation_load import NUMBERS, Load, serve_prompts, write_sustained, write_together
from edgekit.benchmarking.generation_process import GenerationProcess, GenerationSubject
from edgekit.benchmarking.memory_limit import find_smallest_limit
from edgekit.benchmarking.naming import label_models
from edgekit.benchmarking.result_files import GENERATION_COMPARISON_FILE, MEASUREMENT_FILE, write_result
from edgekit.benchmarking.scenario import random_scenario, text_scenario
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import UsageError
from edgekit.models.tasks import read_task
from edgekit.results import GenerationMeasurement, GenerationUnderLoad
from edgekit.runtimes.generation import GenerationRuntime, generation_runtime_for, get_generation_runtime

if TYPE_CHECKING:
    from edgekit.benchmarking.stage import BenchConfig

DEPTHS = (16, 128, 512)
"""Tokens of the prompts, where the model has room for them."""
_TRIED_TOKENS = 4


def bench_language_model(inputs: StageInputs, config: BenchConfig, context: StageContext) -> Artifact:
    """Measures a language model, in every runtime and number of threads asked for, and a reference in turn with it.

    Raises:
        UsageError: a context longer than a model's, more threads than cores, or a runtime that opens no model given.
        ModelError: a runtime cannot open a model.
        MeasurementError: a measuring process died or hung.
        UnsupportedError: several conversations at once, and the runtime writes one only.
    """
    refuse_emulated(config.device)
    if config.device != HERE.name:
        raise UsageError(
            f"bench: device {config.device} is for classifiers so far; found a language model. Leave it out."
        )
    model = inputs.require("model", "bench")
    models = [model] if inputs.reference is None else [model, inputs.reference]
    depths = _depths(models, config)
    sampling = GenerationSampling(
        depths=depths,
        new_tokens=config.new_tokens,
        min_runs=config.min_runs,
        min_seconds=config.min_seconds,
        precision=PRECISION if config.interval_width is None else config.interval_width / 2,
        margin=config.margin,
        max_seconds=config.max_seconds,
        energy_csv=config.energy_file,
        timeout_s=config.timeout_s,
    )
    runtimes = _runtimes(models, config)
    prompts = [_prompts(each, inputs, config, (1, depths[-1]), context.seed)[0] for each in models]
    labels = label_models([each.path for each in models])
    limits = (config.memory_limit_bytes, None)
    subjects = [
        GenerationSubject(each, runtime, prompt, threads, f"{labels[each.path]}, {runtime.name}, {threads}T", limit)
        for each, opening, prompt, limit in zip(models, runtimes, prompts, limits, strict=False)
        for runtime, threads in product(opening, dict.fromkeys([config.threads, *config.sweep_threads]))
    ]
    found = measure_generation(subjects, sampling, seed=context.seed, events=context.events)
    if config.memory_limit_mib == "smallest":
        first = found.measurements[0]
        smallest = find_smallest_limit(_attempt(subjects[0], sampling), first.peak_rss_bytes, context.events)
        first = first.model_copy(update={"smallest_memory": smallest})
        found = found.model_copy(update={"measurements": [first, *found.measurements[1:]]})
    first = found.measurements[0]
    first = first.model_copy(update={"under_load": _put_under_load(subjects[0], first, inputs, config, context)})
    found = found.model_copy(update={"measurements": [first, *found.measurements[1:]]})
    with publish(context.out, kind="measurement", lineage=lineage_of("bench", inputs, config, context)) as directory:
        write_result(found.measurements[0], directory / MEASUREMENT_FILE)
        write_result(found if len(subjects) > 1 else None, directory / GENERATION_COMPARISON_FILE)
    return Artifact.open(context.out)


def _put_under_load(
    subject: GenerationSubject,
    alone: GenerationMeasurement,
    inputs: StageInputs,
    config: BenchConfig,
    context: StageContext,
) -> GenerationUnderLoad | None:
    """Returns what the model does in the scenario that is asked for; None where the usual measurement tells all.

    Its prompts are as long as the middle one of the depths.
    """
    depth = alone.depths[len(alone.depths) // 2]
    load = Load(
        depth=depth.context_tokens,
        new_tokens=config.new_tokens,
        context_length=depth.context_tokens + config.new_tokens + 1,
        seed=context.seed,
        timeout_s=config.timeout_s,
        min_runs=config.min_runs,
        min_seconds=config.min_seconds,
    )
    if config.scenario in ("offline", "multi-stream"):
        number = max(NUMBERS) if config.scenario == "offline" else config.batch
        prompts = _prompts(subject.model, inputs, config, (number, load.depth), context.seed)
        return write_together(subject, config.scenario, prompts, load, context.events)
    if config.scenario == "server" and config.p99_bound_ms is not None:
        return serve_prompts(subject, depth, config.p99_bound_ms, load, context.events)
    if config.scenario == "sustained":
        return write_sustained(subject, config.sustained_s, load, context.events)
    return None


def _attempt(subject: GenerationSubject, sampling: GenerationSampling) -> Callable[[int], None]:
    """Returns what writes a little after the longest prompt, in a fresh process under a limit in bytes."""

    def attempt(limit_bytes: int) -> None:
        limited = replace(subject, memory_limit_bytes=limit_bytes)
        with GenerationProcess(limited, sampling.context_length, sampling.timeout_s) as process:
            process.write(sampling.depths[-1], min(sampling.new_tokens, _TRIED_TOKENS))

    return attempt


def _depths(models: list[Artifact], config: BenchConfig) -> tuple[int, ...]:
    """Returns the lengths of the prompts, rising: those asked for, or the usual ones that fit."""
    smallest = min(models, key=lambda model: read_task(model).max_length)
    room = read_task(smallest).max_length - config.new_tokens - 1
    if config.depths is None:
        fitting = tuple(depth for depth in DEPTHS if depth <= room)
        if fitting:
            return fitting
    depths = tuple(sorted(set(config.depths or DEPTHS[:1])))
    if depths[-1] > room:
        raise UsageError(
            f"depths: found a prompt of {depths[-1]} tokens and new_tokens = {config.new_tokens}, expected at most "
            f"{room + config.new_tokens} together: {smallest.path} has a context of {room + config.new_tokens + 1}. "
            "Ask for less of one of them."
        )
    return depths


def _runtimes(models: list[Artifact], config: BenchConfig) -> list[list[GenerationRuntime]]:
    """Returns the runtimes of each model: those asked for that open it, else the usual one for such a model."""
    names = dict.fromkeys((config.runtime, *config.sweep_runtimes))
    asked = [get_generation_runtime(name) for name in names if name is not None]
    for runtime in asked:
        if not any(model.kind in runtime.formats for model in models):
            generation_runtime_for(models[0], runtime.name)  # raises, and says why
    found = []
    for place, model in enumerate(models):
        opening = [runtime for runtime in asked if model.kind in runtime.formats]
        if not opening:
            # The model itself must run in what was asked for; a reference may be of another kind.
            opening = [generation_runtime_for(model, config.runtime if place == 0 else None)]
        found.append(opening)
    return found


def _prompts(
    model: Artifact, inputs: StageInputs, config: BenchConfig, shape: tuple[int, int], seed: int
) -> list[list[int]]:
    """Returns prompts, `shape` of them and tokens: of the data's test split where there is data, else of the seed."""
    if inputs.data is None and config.inputs == "random":
        return random_scenario(model, *shape, seed=seed).input_ids[0]
    from edgekit.data.prepared import PreparedData

    texts = PreparedData.open(inputs.require("data", "bench")).split("test").texts
    return text_scenario(model, texts, *shape, seed=seed).input_ids[0]
