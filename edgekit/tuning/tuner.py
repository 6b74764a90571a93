"""Tries every way of writing the linears of each shape: right first, then fast, in turn and in fresh processes.

How a linear is written is the exporter's matter, how time is taken that of `benchmarking/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit.artifact import Artifact
from edgekit.benchmarking.harness import require_cores
from edgekit.benchmarking.machine import load_average, machine_fingerprint
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.scenario import VARIANTS, Scenario
from edgekit.benchmarking.series import Sampling
from edgekit.benchmarking.sweep import measure_in_turn
from edgekit.contract import StageContext
from edgekit.errors import MeasurementError, ModelError, ParityError, UsageError
from edgekit.events import Event, ignore
from edgekit.exporters.decoder import trace_linears
from edgekit.exporters.first_token import keep_first_token
from edgekit.exporters.linear_groups import LinearGroup, linear_groups
from edgekit.exporters.linear_kernels import possible_lowerings
from edgekit.exporters.lowering_choice import LinearChoice, LinearShape, LoweringChoice, TriedLowering, shape_of
from edgekit.exporters.lowering_names import TAKES_FLOATS, Lowering
from edgekit.exporters.onnx import BEST_OPSET, OnnxSettings, choose_versions, input_names
from edgekit.exporters.tracing import trace
from edgekit.models.source import LoadedModel, load_model
from edgekit.results import Conditions, Sweep, TurnRatio
from edgekit.runtimes.protocol import Runtime, SessionConfig, get_runtime, reads_directory
from edgekit.tuning.probe import Probe, relative_difference
from edgekit.tuning.stage import AutotuneConfig

_LARGEST_DIFFERENCE = 1e-4
_LARGEST_ROUNDED = 2e-3
"""Where the input is rounded a value on an edge may fall either way; rounding otherwise, or not at all, moves 8-bit
inputs by some 7e-3."""
_COMPARED = 2
_LENGTHS = {"text-classification": 64, "causal-lm": 1}
"""Tokens a row unless they are given: a language model spends its time on writing, token by token."""
_MAX_WARMUP_S = 2.0


@dataclass(frozen=True)
class _Trial:
    """What all linears are tried on."""

    runtime: Runtime
    config: AutotuneConfig
    context: StageContext
    scratch: Path
    length: int
    """Tokens a row."""


def tune(model: Artifact, config: AutotuneConfig, context: StageContext) -> LoweringChoice:
    """Returns how each linear on codes of `model` is best written.

    Raises:
        UnsupportedError: the model cannot be traced, or a scheme has no operator.
        UsageError: no linear holds codes, more threads than cores, or a runtime that does not open onnx.
        ModelError: the model cannot be read.
        ParityError: the runtime computes no way of writing a linear as torch does.
        MeasurementError: a measuring process died or hung.
        EnvironmentLacksError: the runtime is missing.
    """
    runtime = get_runtime(config.runtime, must_be_here=False)
    if reads_directory(runtime):
        raise UsageError(
            f"runtime: found '{runtime.name}', which opens whole exports; expected one that opens a file alone, "
            "for each way of writing a linear is tried in a file of its own. Use onnxruntime-node, which it runs on."
        )
    if "onnx" not in runtime.formats:
        raise UsageError(
            f"runtime: found '{runtime.name}', which opens {' and '.join(runtime.formats)}; expected one that opens "
            "onnx: only there codes are written in more than one way."
        )
    runtime = get_runtime(config.runtime)
    context.events(Event("progress", stage="autotune", text="tracing the model"))
    loaded = load_model(model)
    length = config.length or _LENGTHS[loaded.task.kind]
    found = survey_linears(loaded, config)
    if not found:
        raise UsageError(
            f"{model.path}: found no linear on codes, expected a quantized model. Quantize it first: floats are "
            "written in one way only."
        )
    load = load_average()
    linears = []
    with TemporaryDirectory() as scratch:
        trial = _Trial(runtime, config, context, Path(scratch), length)
        for done, (shape, groups) in enumerate(found.items()):
            text = f"measuring {shape}"
            context.events(
                Event("progress", stage="autotune", text=text, completed=done, total=len(found), unit="shapes")
            )
            linears.append(_choose(trial, shape, groups))
    return LoweringChoice(
        runtime=runtime.name,
        runtime_version=runtime.version(),
        threads=config.threads,
        batch=config.batch,
        length=length,
        margin=config.margin,
        load_average=load,
        machine=machine_fingerprint(),
        model_digest=model.digest,
        linears=linears,
    )


def survey_linears(loaded: LoadedModel, config: AutotuneConfig) -> dict[LinearShape, list[LinearGroup]]:
    """Returns each shape of a linear on codes, as the export meets it, to the linears that have it.

    Raises:
        UnsupportedError: the model cannot be traced.
    """
    if loaded.task.kind == "causal-lm":
        graph, narrowed = trace_linears(loaded, config.logits_to_keep)
    else:
        graph = trace(loaded.model, input_names(loaded), opset=BEST_OPSET).model.graph
        narrowed = keep_first_token(graph) if config.first_token else []
    found: dict[LinearShape, list[LinearGroup]] = {}
    for group in linear_groups(graph, dict(loaded.model.named_modules())):
        if group.coded:
            found.setdefault(shape_of(group, narrowed), []).append(group)
    return found


def _choose(trial: _Trial, shape: LinearShape, groups: list[LinearGroup]) -> LinearChoice:
    """Returns the fastest way of writing linears of one shape, the usual one unless another is clearly faster."""
    probe = Probe.of(shape, groups, trial.context.seed)
    opset, ir_version = choose_versions(BEST_OPSET, 10)
    settings = OnnxSettings(opset=opset, ir_version=ir_version, first_token=False, half=False, metadata={})
    tried: list[TriedLowering] = []
    files: dict[Lowering, Artifact] = {}
    with TemporaryDirectory(dir=trial.scratch) as directory:
        for lowering in possible_lowerings(shape.scheme, groups[0].name):
            file = probe.write(Path(directory) / lowering, lowering, settings)
            tried.append(_verify(trial, probe, file, lowering))
            if tried[-1].refused is None:
                files[lowering] = file
        if not files:
            reasons = " ".join(f"{each.lowering}: {each.refused}" for each in tried)
            raise ParityError(
                f"autotune: {shape}: {trial.runtime.name} {trial.runtime.version()} computes no way of writing it as "
                f"torch does. {reasons} Quantize it otherwise, or use another runtime."
            )
        chosen, conditions = next(iter(files)), None
        if len(files) > 1:
            sweep = _measure(trial, probe, files)
            tried, chosen, conditions = judge_lowerings(tried, list(files), sweep)
    return LinearChoice(
        shape=shape,
        modules=list(dict.fromkeys(group.name for group in groups)),
        copies=len(probe.copies),
        chosen=chosen,
        tried=tried,
        conditions=conditions,
    )


def _verify(trial: _Trial, probe: Probe, file: Artifact, lowering: Lowering) -> TriedLowering:
    """Runs a file in the runtime and compares it with torch."""
    limit = _LARGEST_DIFFERENCE if lowering in TAKES_FLOATS else _LARGEST_ROUNDED
    length = 1 if probe.shape.single_token else trial.length
    try:
        session = trial.runtime.open(file, SessionConfig(threads=trial.config.threads))
        differences = []
        for ids in probe.draw_ids(trial.config.batch, length, _COMPARED, trial.context.seed):
            found = session.run({"input_ids": ids})["logits"]
            differences.append(relative_difference(found, probe.expected(ids, lowering)))
    except (ModelError, MeasurementError) as error:
        reason = str(error).strip().splitlines()[0].replace(str(file.path), "the file")
        return TriedLowering(lowering=lowering, difference=None, refused=reason)
    largest = max(differences)
    refused = None
    if not largest <= limit:  # NaN is no number below the limit
        refused = f"{trial.runtime.name} gives outputs that differ from torch's by {largest:.2g} of them."
    return TriedLowering(lowering=lowering, difference=largest, refused=refused)


def _measure(trial: _Trial, probe: Probe, files: dict[Lowering, Artifact]) -> Sweep:
    """Measures files of the same linears in turn."""
    config, seed = trial.config, trial.context.seed
    length = 1 if probe.shape.single_token else trial.length
    scenario = Scenario(config.batch, length, probe.draw_ids(config.batch, length, VARIANTS, seed).tolist())
    subjects = [Subject(file, trial.runtime, scenario, config.threads) for file in files.values()]
    for subject in subjects:
        require_cores(subject)
    sampling = Sampling(
        min_samples=config.min_samples,
        min_seconds=config.min_seconds,
        pairs=config.pairs,
        margin=config.margin,
        timeout_s=config.timeout_s,
        max_warmup_s=_MAX_WARMUP_S,
    )
    return measure_in_turn(subjects, list(files), sampling, seed=seed, events=ignore)


def judge_lowerings(
    tried: list[TriedLowering], measured: list[Lowering], sweep: Sweep
) -> tuple[list[TriedLowering], Lowering, Conditions | None]:
    """Returns what was tried with its times, the choice, and how quiet the machine was."""
    ratios: list[TurnRatio | None] = [None, *sweep.ratios]
    found = dict(zip(measured, zip(sweep.measurements, ratios, strict=True), strict=True))
    timed = []
    for each in tried:
        if each.lowering in found:
            measurement, ratio = found[each.lowering]
            times = {
                "p50_ms": measurement.p50_ms,
                "p50_interval_ms": measurement.p50_interval_ms,
                "samples": len(measurement.samples_ms),
                "ratio_p50": None if ratio is None else ratio.ratio_p50,
                "ratio_interval": None if ratio is None else ratio.ratio_interval,
            }
            each = each.model_copy(update=times)
        timed.append(each)
    # the verdict is on the first of them: worse means that this one is clearly faster
    faster = [(ratio.ratio_p50, name) for name, (_, ratio) in found.items() if ratio and ratio.verdict == "worse"]
    chosen = min(faster)[1] if faster else measured[0]
    return timed, chosen, sweep.measurements[0].conditions
