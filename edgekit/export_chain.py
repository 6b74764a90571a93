"""What happens to every export of a build: write, check against torch, evaluate, measure, judge, bundle.

One chain per export and target; targets that need the same file share it through the cache.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from edgekit.artifact import Artifact
from edgekit.benchmarking.budget import check_budget, host_matches
from edgekit.benchmarking.machine import machine_fingerprint, usable_cores
from edgekit.benchmarking.roofline import estimate_latency, estimate_peak_memory
from edgekit.benchmarking.stage import BenchConfig, read_comparison, read_measurement, read_quality
from edgekit.cache import Cache
from edgekit.contract import StageInputs
from edgekit.errors import BundleSizeError, EnvironmentLacksError
from edgekit.events import Event
from edgekit.exporters.parity import read_parity
from edgekit.packaging.manifest import MANIFEST_FILE
from edgekit.packaging.stage import BundleFacts, PackageConfig
from edgekit.recipe import ExportEntry, Recipe, bundle_name, export_config, merged_budget
from edgekit.results import AnyMeasurement, BudgetCheck, BudgetResult, Comparison, ExportResult
from edgekit.runtimes.protocol import get_runtime, model_bytes
from edgekit.target import Budget, Target


@dataclass(frozen=True)
class ExportChain:
    """What all exports of a build share."""

    cache: Cache
    recipe: Recipe
    out: Path
    data: Artifact
    model: Artifact
    teacher_quality: Artifact | None


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
    config = export_config(entry, target)
    exported = chain.cache.run("export", StageInputs(model=chain.model), config).artifact
    checked = StageInputs(model=exported, reference=chain.model, data=chain.data)
    verified = verified_with(entry.runtime, "torch")
    parity_config = chain.recipe.parity.model_copy(update={"runtime": entry.runtime})
    parity = read_parity(chain.cache.run("check", checked, parity_config, outside=verified).artifact)
    file_bytes = model_bytes(exported)
    destination = chain.out / "bundles" / bundle_name(chain.recipe, entry, target)
    if not parity.passed:
        return ExportResult(
            format=entry.format,
            target=target.name,
            bytes=file_bytes,
            parity=parity,
            measurement=None,
            budget=BudgetResult(met=False, checks=[]),
        )
    evaluated = StageInputs(model=exported, data=chain.data, teacher=chain.teacher_quality)
    evaluation = chain.recipe.evaluate.model_copy(update={"runtime": entry.runtime})
    quality = read_quality(chain.cache.run("evaluate", evaluated, evaluation, outside=verified).artifact)
    measurement, comparison = _measure(chain, entry, target, exported)
    on_target = host_matches(target) and measurement.threads == target.runtime(entry.runtime).threads
    budget = check_budget(
        merged_budget(chain.recipe, entry, target),
        file_bytes=file_bytes,
        measurement=measurement,
        quality=quality,
        measured_on_target=on_target,
    )
    result = ExportResult(
        format=entry.format,
        target=target.name,
        bytes=file_bytes,
        parity=parity,
        quality=quality,
        measurement=measurement,
        measured_on_target=on_target,
        target_description=target.description,
        float_comparison=comparison,
        estimates=[]
        if on_target
        else [
            estimate_latency(exported, target, _scenario(chain, entry, target)),
            estimate_peak_memory(exported, target, measurement),
        ],
        budget=budget,
        notes=_notes(comparison),
    )
    if not budget.met:
        return result
    package = PackageConfig(target=target, name=chain.recipe.name, facts=BundleFacts.of(result))
    try:
        bundle = chain.cache.run("package", StageInputs(model=exported), package).artifact
    except BundleSizeError as error:
        check = BudgetCheck(
            name="bundle_bytes", limit=error.limit, value=error.found, status="missed", explanation=str(error)
        )
        missed = BudgetResult(met=False, checks=[*budget.checks, check])
        return result.model_copy(update={"budget": missed})
    _place(bundle, destination)
    chain.cache.events(Event("export-finished", stage="package", text=str(destination)))
    return result.model_copy(update={"bundle": str(destination.relative_to(chain.out))})


def verified_with(*runtimes: str) -> dict[str, JsonValue]:
    """Returns what a verification depends on besides its inputs: the runtimes' versions, and the processor.

    Kernels differ between both, so a result of an older runtime or of another machine does not stand for this one.
    """
    machine = machine_fingerprint()
    versions: dict[str, JsonValue] = {name: get_runtime(name).version() for name in runtimes}
    return {**versions, "cpu": machine.cpu, "cpu_features": list[JsonValue](machine.cpu_features)}


def _measure(
    chain: ExportChain, entry: ExportEntry, target: Target, exported: Artifact
) -> tuple[AnyMeasurement, Comparison | None]:
    """Measures the export with the target's threads; a quantized one in turn with its own float32 export."""
    config = _scenario(chain, entry, target)
    if usable_cores():
        config = config.model_copy(update={"threads": min(config.threads, len(usable_cores()))})
    if host_matches(target):
        limit = merged_budget(chain.recipe, entry, target).p95_ms
        config = config.model_copy(update={"decide_p95_ms": limit})
    reference = None
    if entry.precision == "as-is" and (chain.model.path / "quantization.json").is_file():
        floats = export_config(entry.model_copy(update={"precision": "float32"}), target)
        reference = chain.cache.run("export", StageInputs(model=chain.model), floats).artifact
    measured = chain.cache.run(
        "bench",
        StageInputs(model=exported, reference=reference, data=chain.data if config.inputs == "texts" else None),
        config,
        outside={"machine": machine_fingerprint().model_dump(mode="json"), **verified_with(entry.runtime)},
        reusable=lambda artifact: _is_decided(artifact, config),
    ).artifact
    return read_measurement(measured), read_comparison(measured)


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


def _notes(comparison: Comparison | None) -> list[str]:
    """Returns what a person should know about the speed of the codes."""
    if comparison is None or comparison.ratio_interval.low > 1:
        return []
    found = f"float32 takes {comparison.ratio_p50:.2f} times as long"
    if comparison.ratio_interval.high < 1:
        return [f"Quantized is slower than float32 here ({found}): ship float32, or another scheme."]
    return [f"Quantized is not shown to be faster than float32 here ({found})."]


def _place(bundle: Artifact, destination: Path) -> None:
    """Puts a copy of a cached bundle at `destination`, replacing an older one.

    Raises:
        EnvironmentLacksError: the disk is full or not writable.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        try:
            shutil.copytree(bundle.path, staging / "new")
            if destination.exists():
                destination.rename(staging / "old")
            (staging / "new").rename(destination)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:  # shutil.Error too, which names every file that failed
        raise EnvironmentLacksError(
            f"{destination}: the bundle could not be put there ({_reason(error)}). Free disk space, then run the same "
            "command again: everything before it is cached."
        ) from error


def _reason(error: OSError) -> str:
    if error.strerror:
        return error.strerror
    failed = error.args[0] if error.args else error
    return str(failed[0][2] if isinstance(failed, list) and failed else failed)
