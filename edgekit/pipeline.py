"""`build`: the only orchestrator. It folds a recipe's stages, then fans out formats x targets.

It knows in which order things happen and what failing means; every stage's work is the stage's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import JsonValue

from edgekit._version import __version__
from edgekit.artifact import Artifact
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.benchmarking.result_files import read_quality
from edgekit.cache import Cache, locked
from edgekit.circumstances import judged_with
from edgekit.contract import StageConfig, StageInputs
from edgekit.data.stage import source_digest as data_digest
from edgekit.events import Event, EventSink, ignore
from edgekit.export_chain import ExportChain, export_all
from edgekit.models.stage import source_digest as model_digest
from edgekit.models.weights import count_parameters, weight_bytes
from edgekit.preflight import check_before, check_quality_limits, check_teacher
from edgekit.recipe import Recipe
from edgekit.recipe_parts import RecipeStage
from edgekit.reporting.files import BUILD_FILE, write_reports
from edgekit.results import AnyQuality, BuildResult, ExportResult, PreparationResult, StageResult, Unverified


@dataclass
class _Fold:
    """What the build knows while it folds the stages."""

    cache: Cache
    recipe: Recipe
    out: Path
    data: Artifact
    model: Artifact
    teacher: Artifact | None = None
    """The model just before the first stage that is no finetuning; fixed from then on."""
    teacher_quality: Artifact | None = None
    last_quality: Artifact | None = None
    preparation: list[PreparationResult] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)


def build(recipe: Recipe, out: Path | str, *, events: EventSink = ignore, offline: bool = False) -> BuildResult:
    """Runs a recipe into the directory `out` and returns what came of it; `build.json` and the reports hold the same.

    Whatever was made before from the same inputs is taken from the cache in `out`; a killed build goes on where it was.

    Raises:
        EdgekitError: a stage could not run. A missed budget or a failed parity check does not raise: it is the
            result's `exit_code` (1 or 3) and `failures`, and the export concerned has no bundle.
    """
    out = Path(out)
    with locked(out):
        (out / BUILD_FILE).unlink(missing_ok=True)  # a build that fails must not leave an older one's success
        cache = Cache(out, recipe.seed, events, offline)
        fold = _start(cache, recipe, out)
        for stage in recipe.stages:
            _run_stage(fold, stage)
        teacher_quality = _fix_teacher(fold)
        teacher = fold.teacher or fold.model
        chain = ExportChain(cache, recipe, out, fold.data, fold.model, _judged_against(fold), teacher)
        exports = export_all(chain)
        result = _conclude(fold, exports, read_quality(teacher_quality))
        write_reports(result, out)
        cache.forget()
    bundles = sum(export.bundle is not None for export in exports)
    values: dict[str, float] = {"exit_code": result.exit_code, "exports": len(exports), "bundles": bundles}
    events(Event("build-finished", text=str(out), values=values))
    return result


def _start(cache: Cache, recipe: Recipe, out: Path) -> _Fold:
    """Prepares the data and imports the teacher, and says what would fail later."""
    check_before(recipe, cache.events)
    data = cache.run("prepare", StageInputs(), recipe.data, outside={"source": data_digest(recipe.data, cache.offline)})
    check_quality_limits(recipe, data.artifact, cache.events)
    model = cache.run(
        "import", StageInputs(), recipe.teacher, outside={"source": model_digest(recipe.teacher, cache.offline)}
    )
    fold = _Fold(cache, recipe, out, data.artifact, model.artifact)
    for kind, cached in (("prepare", data), ("import", model)):
        fold.preparation.append(_prepared(kind, cached.artifact, cached.seconds, cached.was_cached, out))
    check_teacher(recipe, model.artifact)
    return fold


def _run_stage(fold: _Fold, stage: RecipeStage) -> None:
    """Runs one stage and measures the quality of the model that it made."""
    if stage.kind != "finetune":
        _fix_teacher(fold)
    inputs = StageInputs(model=fold.model, data=fold.data)
    if stage.kind == "distill":
        inputs = replace(inputs, teacher=fold.teacher, signal=_capture(fold, stage.config))
    made = fold.cache.run(stage.kind, inputs, stage.config)
    fold.model = made.artifact
    fold.last_quality = _evaluate(fold, fold.model)
    quality = read_quality(fold.last_quality)
    fold.stages.append(
        StageResult(
            kind=stage.kind,
            seconds=made.seconds,
            cached=made.was_cached,
            quality=quality,
            digest=made.artifact.digest,
            path=str(made.artifact.path.relative_to(fold.out)),
            model_bytes=weight_bytes(made.artifact),
            parameters=count_parameters(made.artifact),
        )
    )
    _report_quality(fold.cache.events, stage.kind, quality)


def _fix_teacher(fold: _Fold) -> Artifact:
    """Makes the model as it is now the teacher, unless there is one, and returns the teacher's evaluation.

    A teacher that is to answer prompts does so here: what follows learns from its answers and is judged on them.
    """
    if fold.teacher is None or fold.teacher_quality is None:
        if fold.recipe.write is not None:
            inputs = StageInputs(teacher=fold.model, data=fold.data)
            written = fold.cache.run("write", inputs, fold.recipe.write)
            fold.data = written.artifact
            fold.last_quality = None  # it was of the text before
            fold.preparation.append(_prepared("write", fold.data, written.seconds, written.was_cached, fold.out))
        fold.teacher_quality = fold.last_quality or _evaluate(fold, fold.model)
        fold.teacher = fold.model
    return fold.teacher_quality


def _capture(fold: _Fold, config: StageConfig) -> Artifact | None:
    """Returns the teacher's outputs; distillations that need the same share them through the cache.

    None for a language model, unless its configuration asks for a captured signal: its teacher runs beside it.
    """
    from edgekit.distillation.stage import DistillConfig, capture_config

    assert isinstance(config, DistillConfig)
    assert fold.teacher is not None
    settings = capture_config(config, fold.recipe.task.kind)
    if settings is None:
        return None
    # A language model's teacher reads the student's tokens, which may be fewer than its own.
    reader = fold.model if fold.recipe.task.kind == "causal-lm" else None
    inputs = StageInputs(model=reader, teacher=fold.teacher, data=fold.data)
    cached = fold.cache.run("capture", inputs, settings)
    prepared = _prepared("capture", cached.artifact, cached.seconds, cached.was_cached, fold.out)
    if all(known.digest != prepared.digest for known in fold.preparation):
        fold.preparation.append(prepared)
    return cached.artifact


def _evaluate(fold: _Fold, model: Artifact) -> Artifact:
    inputs = StageInputs(model=model, data=fold.data, teacher=_judged_against(fold))
    outside = judged_with(fold.recipe, "torch")
    return fold.cache.run("evaluate", inputs, fold.recipe.evaluate, outside=outside).artifact


def _judged_against(fold: _Fold) -> Artifact | None:
    """Returns what a model is compared with: a classifier's teacher left its logits, a language model's runs again."""
    return fold.teacher if fold.recipe.task.kind == "causal-lm" else fold.teacher_quality


def _conclude(fold: _Fold, exports: list[ExportResult], teacher_quality: AnyQuality) -> BuildResult:
    failures = [failure for export in exports for failure in _failures(export)]
    source: dict[str, JsonValue] = fold.recipe.source
    teacher = fold.teacher or fold.model
    return BuildResult(
        schema_version=1,
        name=fold.recipe.name,
        seed=fold.recipe.seed,
        edgekit_version=__version__,
        machine=machine_fingerprint(),
        teacher_quality=teacher_quality,
        teacher_bytes=weight_bytes(teacher),
        teacher_parameters=count_parameters(teacher),
        preparation=fold.preparation,
        stages=fold.stages,
        steps=fold.cache.steps,
        exports=exports,
        recipe=source,
        failures=failures,
        exit_code=_exit_code(exports),
    )


def _exit_code(exports: list[ExportResult]) -> int:
    """Returns 3 where a file differs from its model, 4 where nobody looked, 1 where a budget is not met, else 0."""
    if any(_has_failed(export) for export in exports):
        return 3
    if any(not export.parity.passed for export in exports):
        return 4
    return 1 if any(not export.budget.met for export in exports) else 0


def _has_failed(export: ExportResult) -> bool:
    """Returns whether the runtime that ships an export differs from torch in anything, or another one in the file."""
    failed = not export.parity.passed and not isinstance(export.parity, Unverified)
    return failed or any(parity.file_differs for parity in export.other_parities)


def _failures(export: ExportResult) -> list[str]:
    """Returns one sentence for each thing that keeps an export from shipping."""
    where = f"{export.format} for {export.target}"
    failed = [f"{where}: parity: {failure}" for failure in export.parity.failures]
    for parity in export.other_parities:
        if parity.file_differs:  # else it is a note: the export ships without that runtime
            failed += [f"{where}: parity under {parity.runtime}: {failure}" for failure in parity.failures]
    return failed + [
        f"{where}: {check.name}: {check.explanation}"
        for check in export.budget.checks
        if check.status in ("missed", "inconclusive")
    ]


def _prepared(kind: str, artifact: Artifact, seconds: float, was_cached: bool, out: Path) -> PreparationResult:
    return PreparationResult(
        kind=kind,
        seconds=seconds,
        cached=was_cached,
        digest=artifact.digest,
        path=str(artifact.path.relative_to(out)),
    )


def _report_quality(events: EventSink, kind: str, quality: AnyQuality) -> None:
    found = quality.headline
    values = {str(found.metric): found.value}
    if found.change is not None:
        values[found.change_name] = found.change
    values |= {f"{found.metric}_{name}": part.headline.value for name, part in quality.parts.items()}
    events(Event("metric", stage=kind, text=f"quality on {quality.split}", values=values))
