"""One model or several in every format and runtime, checked, judged and measured in turn: what `edgekit matrix` does.

A torch model is written in every format that can hold it; an export is taken as it is. Files are made through the cache
of the output directory, so that a run that was killed goes on where it stopped. What a format cannot hold, what a
runtime cannot open, and what computes something else than the model is left out with the reason, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.benchmarking.config import EvaluateConfig
from edgekit.benchmarking.machine import usable_cores
from edgekit.benchmarking.naming import label_models
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.result_files import read_quality
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.benchmarking.sweep import measure_in_turn
from edgekit.cache import Cache, locked
from edgekit.circumstances import run_with, written_with
from edgekit.contract import StageInputs
from edgekit.errors import EdgekitError, MeasurementError, ParityError, UsageError
from edgekit.events import EventSink
from edgekit.exporters.check_stage import CheckConfig
from edgekit.exporters.parity import read_parity
from edgekit.exporters.stage import ExportConfig
from edgekit.formats import FORMATS
from edgekit.models.tasks import read_task
from edgekit.results import LeftOut, Matrix, MatrixRow, Parity, Quality
from edgekit.runtimes.protocol import Runtime, available_runtimes_for, format_of, get_runtime

_TASK = "text-classification"
_TRIED_CALLS = 2


@dataclass(frozen=True)
class MatrixPlan:
    """What is written, and how it is measured."""

    out: Path
    """Directory of the files that are made."""
    formats: tuple[str, ...] | None = None
    """Formats to write torch models in; None: all that hold classifiers."""
    runtimes: tuple[str, ...] | None = None
    """Names of the runtimes; None: all at hand."""
    threads: tuple[int, ...] = (1,)
    length: int = 64
    """Tokens of the one row of a call."""
    max_rows: int | None = None
    """Rows of the test split that quality is judged on; None: all."""
    sampling: Sampling = field(default_factory=lambda: Sampling(pairs=5))
    seed: int = 0


@dataclass(frozen=True)
class _File:
    """A model in one format."""

    model: str
    format: str
    artifact: Artifact
    reference: Artifact | None
    """The torch model that it was made of; None where it was given."""


@dataclass(frozen=True)
class _Cell:
    """A file in a runtime, checked."""

    file: _File
    runtime: Runtime
    parity: Parity | None


def build_matrix(models: Sequence[Artifact], data: Artifact | None, plan: MatrixPlan, events: EventSink) -> Matrix:
    """Returns every row that could be had, the first being that of the first file in the runtime that ships it.

    Raises:
        UsageError: a language model, a name of a runtime or format that is unknown, or fewer than two rows were left.
        MeasurementError: a process died while all took turns.
    """
    _require_classifiers(models)
    _require_possible(plan)
    left_out: list[LeftOut] = []
    with locked(plan.out):
        cache = Cache(plan.out, plan.seed, events)
        files = list(_write_all(models, plan, cache, left_out))
        cells = [cell for file in files for cell in _cells(file, data, plan, cache, left_out)]
        if len(cells) * len(plan.threads) < 2:
            reasons = "; ".join(f"{each.format} {each.runtime}: {each.reason}" for each in left_out)
            raise UsageError(f"matrix: found {len(cells)} file and runtime, expected two at least. Left out: {reasons}")
        qualities = _judge(cells, data, plan, cache)
    subjects = [(cell, _subject(cell, plan, threads)) for threads in plan.threads for cell in cells]
    names = [f"{cell.file.model}, {cell.file.format}, {cell.runtime.name}, {run.threads}T" for cell, run in subjects]
    sweep = measure_in_turn([run for _, run in subjects], names, plan.sampling, seed=plan.seed, events=events)
    ratios = [None, *sweep.ratios]
    rows = [
        MatrixRow(
            model=cell.file.model,
            format=cell.file.format,
            parity=cell.parity,
            quality=qualities.get(cell.file.artifact.digest),
            measurement=measurement,
            ratio=ratio,
        )
        for (cell, _), measurement, ratio in zip(subjects, sweep.measurements, ratios, strict=True)
    ]
    return Matrix(rows=rows, left_out=left_out, rounds=sweep.rounds, sets=sweep.sets)


def _require_classifiers(models: Sequence[Artifact]) -> None:
    for model in models:
        kind = read_task(model).kind
        if kind != _TASK:
            raise UsageError(
                f"{model.path}: found a model for the task '{kind}', expected {_TASK}. Measure a language model with "
                "edgekit bench --all-runtimes, once for each of its files."
            )


def _require_possible(plan: MatrixPlan) -> None:
    """Refuses what would fail after the files are made."""
    for name in plan.runtimes or ():
        get_runtime(name)
    numbers = {"threads": min(plan.threads), "length": plan.length, "max_rows": plan.max_rows or 1}
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"matrix: {name}: found {value}, expected 1 or more.")
    cores = len(usable_cores())
    if 0 < cores < max(plan.threads):
        raise UsageError(f"matrix: threads: found {max(plan.threads)}, expected at most {cores}, the cores here.")


def _export_configs(plan: MatrixPlan) -> Iterator[tuple[str, ExportConfig]]:
    """Yields what a format is called in tables and how it is written; files of fixed shapes for one length alone."""
    for name, row in FORMATS.items():
        if _TASK not in row.tasks or (plan.formats is not None and name not in plan.formats):
            continue
        config = ExportConfig.model_validate({"format": name})
        if row.fixed_lengths:
            config = config.model_copy(update={"lengths": [plan.length]})
        yield name, config
        if name == "onnx":
            yield "onnx, standard", config.model_copy(update={"dialect": "standard"})


def _write_all(models: Sequence[Artifact], plan: MatrixPlan, cache: Cache, left_out: list[LeftOut]) -> Iterator[_File]:
    """Yields every file, the torch model after those that are made of it."""
    labels = label_models([model.path for model in models])
    for model in models:
        name = labels[model.path]
        if model.kind != "model":
            yield _File(name, format_of(model), model, None)
            continue
        for title, config in _export_configs(plan):
            try:
                outside = written_with(config.format)
                made = cache.run("export", StageInputs(model=model), config, outside=outside).artifact
            except Exception as error:  # noqa: BLE001 (one format must not end a long run; the reason is kept)
                left_out.append(LeftOut(model=name, format=title, runtime="", reason=_reason(error)))
            else:
                yield _File(name, title, made, model)
        yield _File(name, "torch", model, None)


def _cells(
    file: _File, data: Artifact | None, plan: MatrixPlan, cache: Cache, left_out: list[LeftOut]
) -> Iterator[_Cell]:
    """Yields the file in each runtime that opens it, computes the same, and can be measured."""
    runtimes = _runtimes(file, plan)
    if not runtimes and plan.runtimes is None:
        reason = "no runtime that opens it is here."
        left_out.append(LeftOut(model=file.model, format=file.format, runtime="", reason=reason))
    for runtime in runtimes:
        try:
            for threads in plan.threads:
                _try_out(_subject(_Cell(file, runtime, None), plan, threads), plan.sampling.timeout_s)
            parity = _check(file, runtime, data, cache)
        except Exception as error:  # noqa: BLE001 (nor must one runtime)
            left_out.append(LeftOut(model=file.model, format=file.format, runtime=runtime.name, reason=_reason(error)))
        else:
            yield _Cell(file, runtime, parity)


def _runtimes(file: _File, plan: MatrixPlan) -> list[Runtime]:
    """Returns those at hand that open the file, the one that ships its format first."""
    found = available_runtimes_for(format_of(file.artifact))
    if plan.runtimes is None:
        return found
    asked = [get_runtime(name).name for name in plan.runtimes]
    return [runtime for runtime in found if runtime.name in asked]


def _check(file: _File, runtime: Runtime, data: Artifact | None, cache: Cache) -> Parity | None:
    """Returns what the file differs by from the model it was made of.

    Raises:
        ParityError: by more than it may.
        EdgekitError: whatever the check raises.
    """
    if data is None or file.reference is None:
        return None
    inputs = StageInputs(model=file.artifact, reference=file.reference, data=data)
    outside = run_with(runtime.name, "torch")
    made = cache.run("check", inputs, CheckConfig(runtime=runtime.name), outside=outside).artifact
    parity = read_parity(made)
    assert isinstance(parity, Parity)
    if not parity.passed:
        raise ParityError(" ".join(parity.failures))
    return parity


def _reason(error: Exception) -> str:
    """Returns an error in one line; those that are not edgekit's own with their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, EdgekitError) else f"{type(error).__name__}: {text}"


def _try_out(subject: Subject, timeout_s: float) -> None:
    """Does nothing where a fresh process opens and runs the model.

    Raises:
        EdgekitError: it does not.
    """
    with MeasuringProcess(subject, timeout_s) as process:
        if not process.sample(_TRIED_CALLS, timeout_s):
            raise MeasurementError("no call was made.")


def _judge(cells: Sequence[_Cell], data: Artifact | None, plan: MatrixPlan, cache: Cache) -> dict[str, Quality]:
    """Returns the quality of each file by its digest, in the runtime that ships its format, or else its first one."""
    found: dict[str, Quality] = {}
    if data is None:
        return found
    for cell in sorted(cells, key=lambda cell: not _ships(cell)):
        artifact, runtime = cell.file.artifact, cell.runtime
        if artifact.digest in found:
            continue
        config = EvaluateConfig(runtime=runtime.name, max_rows=plan.max_rows)
        inputs = StageInputs(model=artifact, data=data)
        made = cache.run("evaluate", inputs, config, outside=run_with(runtime.name)).artifact
        quality = read_quality(made)
        assert isinstance(quality, Quality)
        found[artifact.digest] = quality
    return found


def _ships(cell: _Cell) -> bool:
    written = FORMATS.get(cell.file.artifact.kind)
    return written is not None and written.runtime == cell.runtime.name


def _subject(cell: _Cell, plan: MatrixPlan, threads: int) -> Subject:
    scenario = random_scenario(cell.file.artifact, 1, plan.length, seed=plan.seed)
    return replace(Subject(cell.file.artifact, cell.runtime, scenario), threads=threads)
