"""What happens to every export of a build: write, check against torch, evaluate, measure, judge, bundle.

One chain per export and target; targets that need the same file share it through the cache.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.benchmarking.budget import check_budget, check_unseen, host_matches
from edgekit.benchmarking.estimates import check_estimates, estimate_all
from edgekit.benchmarking.machine import machine_fingerprint, usable_cores
from edgekit.benchmarking.result_files import read_comparison, read_measurement, read_quality
from edgekit.benchmarking.stage import BenchConfig
from edgekit.cache import Cache
from edgekit.circumstances import judged_with, verified_with, written_with
from edgekit.contract import StageInputs
from edgekit.errors import BundleSizeError
from edgekit.events import Event
from edgekit.exporters.description import EXPORT_FILE
from edgekit.exporters.parity import read_parity
from edgekit.exporters.stage import ExportConfig
from edgekit.formats import FORMATS
from edgekit.measured_lowering import lowering_notes, measure_lowering
from edgekit.models.weights import weight_bytes
from edgekit.packaging.manifest import MANIFEST_FILE, read_versions
from edgekit.packaging.placement import place_bundle
from edgekit.packaging.stage import BundleFacts, PackageConfig
from edgekit.recipe import Recipe, bundle_name, export_config, merged_budget
from edgekit.recipe_parts import ExportEntry
from edgekit.results import (
    AnyMeasurement,
    AnyParity,
    BudgetCheck,
    BudgetResult,
    Comparison,
    ExportResult,
    Unverified,
)
from edgekit.runtimes.generation import list_generation_runtimes, load_generation_runtime
from edgekit.runtimes.protocol import model_bytes
from edgekit.target import Budget, Target

_LARGEST_TEACHER = 2**30  # bytes of weights


@dataclass(frozen=True)
class ExportChain:
    """What all exports of a build share."""

    cache: Cache
    recipe: Recipe
    out: Path
    data: Artifact
    model: Artifact
    teacher: Artifact | None
    """What exports are compared with: a classifier's teacher by its evaluation, a language model's as it is."""
    teacher_model: Artifact
    """The teacher itself; `model` where it is exported as it was taken."""
    measured: set[str] = field(default_factory=set)
    """Digests of the measurements that this build made: it does not repeat them, decided or not."""


def export_all(chain: ExportChain) -> list[ExportResult]:
    """Returns one result for each format and target; bundles that an older build left and this one did not make go."""
    results = []
    for entry in chain.recipe.exports:
        for name in entry.targets:
            results.append(_export(chain, entry, chain.recipe.targets[name]))
    made = {chain.out / result.bundle for result in results if result.bundle is not None}
    for manifest in (chain.out / "bundles").glob(f"*/{MANIFEST_FILE}"):
        if manifest.parent not in made:
            shutil.rmtree(manifest.parent)
    return results


def _export(chain: ExportChain, entry: ExportEntry, target: Target) -> ExportResult:
    lowering = measure_lowering(chain.cache, chain.recipe, chain.model, entry, target)
    exported = _write(chain, chain.model, export_config(entry, target), lowering)
    runtimes = _runtimes(chain, entry, target)
    for runtime in runtimes if FORMATS[entry.format].has_versions else []:
        read_versions(exported, target, target.runtime(runtime))  # refuses what the target cannot read
    parity, *others = [_check(chain, runtime, exported) for runtime in runtimes]
    notes = _export_notes(exported) + lowering_notes(lowering, target)
    notes += [_set_aside(other) for other in others if not other.passed and not other.file_differs]
    result = ExportResult(
        format=entry.format,
        target=target.name,
        bytes=model_bytes(exported),
        parity=parity,
        other_parities=others,
        measurement=None,
        target_description=target.description,
        budget=BudgetResult(met=False, checks=[]),
        notes=notes,
    )
    if isinstance(parity, Unverified) and entry.unverified == "allow":
        unseen = check_unseen(merged_budget(chain.recipe, entry, target), file_bytes=result.bytes)
        return _bundle(chain, entry, target, (exported, result.model_copy(update={"budget": unseen})))
    if not parity.passed or any(other.file_differs for other in others):
        return result
    return _bundle(chain, entry, target, (exported, _judge(chain, entry, target, (exported, result))))


def _runtimes(chain: ExportChain, entry: ExportEntry, target: Target) -> list[str]:
    """Returns the runtime that ships the export, then the others that the target ships and that open such a file."""
    if chain.recipe.task.kind != "causal-lm":
        return [entry.runtime]
    known = list_generation_runtimes()
    shipped = [runtime.name for runtime in target.runtimes if runtime.name in known and runtime.name != entry.runtime]
    return [entry.runtime, *(name for name in shipped if entry.format in load_generation_runtime(known[name]).formats)]


def _check(chain: ExportChain, runtime: str, exported: Artifact) -> AnyParity:
    inputs = StageInputs(model=exported, reference=chain.model, data=chain.data)
    config = chain.recipe.parity.model_copy(update={"runtime": runtime})
    verified = verified_with(chain.recipe, runtime, "torch")
    return read_parity(chain.cache.run("check", inputs, config, outside=verified).artifact)


def _judge(
    chain: ExportChain, entry: ExportEntry, target: Target, written: tuple[Artifact, ExportResult]
) -> ExportResult:
    """Evaluates and measures an export that passed its checks, and compares what was found with the budget."""
    exported, result = written
    evaluated = StageInputs(model=exported, data=chain.data, teacher=chain.teacher)
    evaluation = chain.recipe.evaluate.model_copy(update={"runtime": entry.runtime})
    verified = judged_with(chain.recipe, entry.runtime, "torch")
    quality = read_quality(chain.cache.run("evaluate", evaluated, evaluation, outside=verified).artifact)
    measurement, comparison = _measure(chain, entry, target, exported)
    on_target = host_matches(target) and measurement.threads == target.runtime(entry.runtime).threads
    budget = check_budget(
        merged_budget(chain.recipe, entry, target),
        file_bytes=result.bytes,
        measurement=measurement,
        quality=quality,
        measured_on_target=on_target,
    )
    estimated = exported, target, _scenario(chain, entry, target), measurement
    found = {
        "quality": quality,
        "measurement": measurement,
        "measured_on_target": on_target,
        "float_comparison": comparison,
        "teacher_comparison": _compare_with_teacher(chain, entry, target, exported),
        "estimates": [] if on_target else estimate_all(*estimated),
        "estimate_checks": check_estimates(*estimated) if on_target else [],
        "budget": budget,
        "notes": [*result.notes, *_notes(comparison)],
    }
    return result.model_copy(update=found)


def _bundle(
    chain: ExportChain, entry: ExportEntry, target: Target, judged: tuple[Artifact, ExportResult]
) -> ExportResult:
    """Puts an export that keeps its budget into a bundle."""
    exported, result = judged
    if not result.budget.met:
        return result
    facts = BundleFacts.of(result)
    package = PackageConfig(target=target, name=chain.recipe.name, facts=facts, unverified=entry.unverified)
    try:
        bundle = chain.cache.run("package", StageInputs(model=exported), package).artifact
    except BundleSizeError as error:
        check = BudgetCheck(
            name="bundle_bytes", limit=error.limit, value=error.found, status="missed", explanation=str(error)
        )
        missed = BudgetResult(met=False, checks=[*result.budget.checks, check])
        return result.model_copy(update={"budget": missed})
    destination = chain.out / "bundles" / bundle_name(chain.recipe, entry, target)
    place_bundle(bundle, destination)
    chain.cache.events(Event("export-finished", stage="package", text=str(destination)))
    return result.model_copy(update={"bundle": str(destination.relative_to(chain.out))})


def _set_aside(other: AnyParity) -> str:
    """Returns why an export is not bundled for a runtime besides the one that ships it, though the file is right."""
    if isinstance(other, Unverified):
        return f"Not verified under {other.runtime}, and not bundled for it: it is not here."
    return f"Not bundled for {other.runtime}, whose own reading of text differs: {' '.join(other.failures)}"


def _export_notes(exported: Artifact) -> list[str]:
    """Returns what the exporter found worth knowing."""
    file = exported.path / EXPORT_FILE
    notes: list[str] = json.loads(file.read_text(encoding="utf-8"))["notes"]
    return notes


def _measure(
    chain: ExportChain, entry: ExportEntry, target: Target, exported: Artifact
) -> tuple[AnyMeasurement, Comparison | None]:
    """Measures the export with the target's threads; a quantized one in turn with its own float32 export."""
    config = _scenario_here(chain, entry, target)
    writes = chain.recipe.task.kind == "causal-lm"
    if not writes:
        config = config.model_copy(update={"decide_p95_ms": _limit_to_decide(chain, entry, target)})
    reads_text = writes or config.inputs == "texts"
    reference = None
    if entry.precision == "as-is" and not writes and (chain.model.path / "quantization.json").is_file():
        reference = _float_export(chain, entry, target, chain.model)
    inputs = StageInputs(model=exported, reference=reference, data=chain.data if reads_text else None)
    measured = _bench(chain, entry, inputs, config)
    return read_measurement(measured), read_comparison(measured)


def _limit_to_decide(chain: ExportChain, entry: ExportEntry, target: Target) -> float | None:
    """Returns the p95 limit that measuring here can decide, also of another target that shares file and scenario.

    So targets that share them are measured once, also those that this machine is not.
    """
    shipped = [(other, chain.recipe.targets[name]) for other in chain.recipe.exports for name in other.targets]

    def measured(other: ExportEntry, place: Target) -> tuple[str, ExportConfig, BenchConfig]:
        return other.lowering, export_config(other, place), _scenario_here(chain, other, place)

    for other, place in [(entry, target), *shipped]:
        if host_matches(place) and measured(other, place) == measured(entry, target):
            return merged_budget(chain.recipe, other, place).p95_ms
    return None


def _compare_with_teacher(
    chain: ExportChain, entry: ExportEntry, target: Target, exported: Artifact
) -> Comparison | None:
    """Measures a classifier's export in turn with its teacher's own float32 export.

    None where that is the same file, for a teacher too large to be written for this alone, and for language models.
    """
    is_teacher = chain.teacher_model.digest == chain.model.digest and entry.precision in ("as-is", "float32")
    if chain.recipe.task.kind == "causal-lm" or is_teacher or weight_bytes(chain.teacher_model) > _LARGEST_TEACHER:
        return None
    config = _single_calls(_scenario_here(chain, entry, target))
    data = chain.data if config.inputs == "texts" else None
    reference = _float_export(chain, entry, target, chain.teacher_model)
    return read_comparison(_bench(chain, entry, StageInputs(model=exported, reference=reference, data=data), config))


def _single_calls(config: BenchConfig) -> BenchConfig:
    """Returns the settings without a load: two models are compared call by call."""
    return config.model_copy(update={"scenario": "single-stream", "p99_bound_ms": None})


def _float_export(chain: ExportChain, entry: ExportEntry, target: Target, model: Artifact) -> Artifact:
    floats = export_config(entry.model_copy(update={"precision": "float32"}), target)
    return _write(chain, model, floats)


def _write(chain: ExportChain, model: Artifact, config: ExportConfig, lowering: Artifact | None = None) -> Artifact:
    """Writes a model in a format, unless that was done before by the same version of what converts it."""
    inputs = StageInputs(model=model, lowering=lowering)
    return chain.cache.run("export", inputs, config, outside=written_with(config.format)).artifact


def _bench(chain: ExportChain, entry: ExportEntry, inputs: StageInputs, config: BenchConfig) -> Artifact:
    """Measures on this machine with this runtime, unless that was done before."""
    machine = machine_fingerprint().model_dump(mode="json")
    outside = {"machine": machine, **verified_with(chain.recipe, entry.runtime)}

    def reusable(found: Artifact) -> bool:
        return found.digest in chain.measured or _is_decided(found, config)

    made = chain.cache.run("bench", inputs, config, outside=outside, reusable=reusable)
    if not made.was_cached:
        chain.measured.add(made.artifact.digest)
    return made.artifact


def _is_decided(measured: Artifact, config: BenchConfig) -> bool:
    """Returns whether a measurement settled its p95 limit, if it had one: else a rerun measures again."""
    if config.decide_p95_ms is None:
        return True
    budget = check_budget(
        Budget(p95_ms=config.decide_p95_ms),
        file_bytes=0,
        measurement=read_measurement(measured),
        quality=None,
        measured_on_target=True,
    )
    return all(check.status != "inconclusive" for check in budget.checks)


def _scenario(chain: ExportChain, entry: ExportEntry, target: Target) -> BenchConfig:
    """Returns the recipe's scenario with the runtime and the threads that an app gives it on the target."""
    shipped = target.runtime(entry.runtime)
    return chain.recipe.bench.model_copy(update={"runtime": entry.runtime, "threads": shipped.threads})


def _scenario_here(chain: ExportChain, entry: ExportEntry, target: Target) -> BenchConfig:
    """Returns the same with no more threads than this machine has cores for."""
    config = _scenario(chain, entry, target)
    if not usable_cores():
        return config
    return config.model_copy(update={"threads": min(config.threads, len(usable_cores()))})


def _notes(comparison: Comparison | None) -> list[str]:
    """Returns what a person should know about the speed of the codes."""
    if comparison is None or comparison.ratio_interval.low > 1:
        return []
    found = f"float32 takes {comparison.ratio_p50:.2f} times as long"
    if comparison.ratio_interval.high < 1:
        return [f"Quantized is slower than float32 here ({found}): ship float32, or another scheme."]
    return [f"Quantized is not shown to be faster than float32 here ({found})."]
