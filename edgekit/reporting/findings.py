"""What follows from a `BuildResult`: the verdict, the headline figures, and which measurements are distinct.

Every kind of report shows these; none derives them for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.reporting import agreement, speed
from edgekit.reporting.wording import STATUS_TITLES, check_title, join_words, machine, seconds
from edgekit.results import (
    AnyMeasurement,
    AnyQuality,
    BudgetCheck,
    BuildResult,
    Comparison,
    Exchange,
    ExportResult,
    LanguageQuality,
    PreparationResult,
    StageResult,
    StepResult,
    Unverified,
)

Tone = Literal["good", "bad", "uncertain"]


@dataclass(frozen=True)
class Verdict:
    """How the build ended, in a few words."""

    title: str
    explanation: str
    tone: Tone


@dataclass(frozen=True)
class Measured:
    """One measurement and everything that reports it: exports for several targets often share one."""

    export: ExportResult
    """The first export that reports it."""
    measurement: AnyMeasurement
    targets: list[str]
    """Names of the targets in whose rows it stands."""
    comparisons: list[tuple[str, Comparison]]
    """What it was interleaved with (`its float32 export`, `the teacher`), and the comparison."""


@dataclass(frozen=True)
class Talk:
    """A prompt and what two models answered."""

    prompt: str
    teacher: Exchange | None
    """The teacher's answer, where it was asked."""
    student: Exchange
    """The answer of what ships."""


def verdict(result: BuildResult) -> Verdict:
    """Returns the verdict that the exit code and the checks amount to."""
    if result.exit_code == 0:
        unmeasured = sum(check.status == "not-measured" for _, check in budget_checks(result))
        rest = f" {unmeasured} limits could not be measured on this machine." if unmeasured > 1 else ""
        rest = " One limit could not be measured on this machine." if unmeasured == 1 else rest
        return Verdict("Every gate passed", f"{_shipped(result)}.{rest}", "good")
    if result.exit_code == 3:
        broken = [
            export
            for export in result.exports
            if agreement.verdict(export.parity) == "failed" or any(one.file_differs for one in export.other_parities)
        ]
        where = join_words([f"{export.format} for {export.target}" for export in broken])
        return Verdict("Parity failed", f"The exported file is not the model that was trained: {where}.", "bad")
    if result.exit_code == 4:
        unseen = [export for export in result.exports if isinstance(export.parity, Unverified)]
        where = join_words([f"{export.format} for {export.target}" for export in unseen])
        allowed = [export for export in unseen if export.bundle is not None]
        outcome = "so nothing ships" if not allowed else "and the recipe allows bundles that are UNVERIFIED"
        return Verdict("Not verified", f"The runtime that ships it is not here, {outcome}: {where}.", "uncertain")
    if result.exit_code == 1:
        failed = [(export, check) for export, check in budget_checks(result) if check.status == "missed"]
        open_ones = [(export, check) for export, check in budget_checks(result) if check.status == "inconclusive"]
        if failed:
            return Verdict("Budget missed", f"{_list_checks(failed)}.", "bad")
        if open_ones:
            found = f"Nothing shows that the budget is met: {_list_checks(open_ones)}."
            return Verdict("Inconclusive", found, "uncertain")
    return Verdict(f"Build failed, exit code {result.exit_code}", "See the failures below.", "bad")


def budget_checks(result: BuildResult) -> list[tuple[ExportResult, BudgetCheck]]:
    """Returns every budget check of every export, in order."""
    return [(export, check) for export in result.exports for check in export.budget.checks]


def distinct_measurements(result: BuildResult) -> list[Measured]:
    """Returns each measurement once, in the order of the exports, with the targets that share it."""
    found: list[Measured] = []
    for export in result.exports:
        if export.measurement is None:
            continue
        same = next((entry for entry in found if entry.measurement == export.measurement), None)
        if same is None:
            found.append(Measured(export, export.measurement, [export.target], comparisons(export)))
        elif export.target not in same.targets:
            same.targets.append(export.target)
    return found


def measured_where(result: BuildResult) -> list[str]:
    """Returns one line a distinct scenario and machine."""
    lines = [
        f"Measured: {speed.scenario(entry.measurement)}, on {machine(entry.measurement.machine)}."
        for entry in distinct_measurements(result)
    ]
    return list(dict.fromkeys(lines))


def rows_of(entry: Measured, every: list[Measured]) -> str:
    """Returns in which targets' rows a measurement stands, and why another one of that format does not do for them."""
    rows = f"In the rows of {join_words(entry.targets)}."
    other = next((other for other in every if other is not entry and other.export.format == entry.export.format), None)
    if other is None:
        return rows
    reason = "a run of its own, for another p95 limit"
    if other.measurement.model_digest != entry.measurement.model_digest:
        reason = "another file"
    elif other.measurement.runtime != entry.measurement.runtime:
        reason = "another runtime"
    elif other.measurement.threads != entry.measurement.threads:
        reason = "another number of threads"
    return f"{rows} Measured apart from {join_words(other.targets)}: {reason}."


def comparisons(export: ExportResult) -> list[tuple[str, Comparison]]:
    """Returns the comparisons of an export, each with the name of the other side."""
    pairs = [
        ("its float32 export", export.float_comparison),
        ("the teacher's float32 export", export.teacher_comparison),
    ]
    return [(name, comparison) for name, comparison in pairs if comparison is not None]


def teacher_stage(result: BuildResult) -> StageResult | None:
    """Returns the stage that made the teacher, such as its finetuning; None when the teacher was taken as it was."""
    candidates = [stage for stage in result.stages if stage.quality.headline.change is None]
    return next((stage for stage in reversed(candidates) if stage.quality == result.teacher_quality), None)


def teacher_bytes(result: BuildResult) -> int:
    """Returns the size of the teacher's weights, or 0 when the build does not say."""
    stage = teacher_stage(result)
    return result.teacher_bytes or (stage.model_bytes if stage is not None else 0)


def final_quality(result: BuildResult) -> AnyQuality | None:
    """Returns the quality of what ships: the first export's, else the last stage's."""
    exported = [export.quality for export in result.exports if export.quality is not None]
    return next(iter(exported + [stage.quality for stage in reversed(result.stages)]), None)


def talks(result: BuildResult) -> list[Talk]:
    """Returns a few prompts with what the teacher and what ships answer; none where nothing was asked."""
    teacher, student = (_examples(quality) for quality in (result.teacher_quality, final_quality(result)))
    said = {(example.prompt, example.expected): example for example in teacher}
    return [Talk(example.prompt, said.get((example.prompt, example.expected)), example) for example in student]


def _examples(quality: AnyQuality | None) -> list[Exchange]:
    asked = quality.answers if isinstance(quality, LanguageQuality) else None
    return [] if asked is None else asked.examples


def headline_export(result: BuildResult) -> ExportResult | None:
    """Returns the export that the headline figures describe: the first measured one, else the first."""
    measured = [export for export in result.exports if export.measurement is not None]
    return next(iter(measured + result.exports), None)


def step_seconds(result: BuildResult) -> list[float]:
    """Returns the time of every step in order; of the file of an older version, of those that it tells."""
    return [step.seconds for step in _steps(result)]


def work(result: BuildResult) -> str:
    """Returns how long the steps took by themselves, and how many they are; nothing where there is none."""
    times = step_seconds(result)
    if not times:
        return ""
    cached = any(step.cached for step in _steps(result))
    counted = ", cached ones with the time of their first run" if cached else ""
    missing = "" if result.steps else " (evaluations and exports not counted)"
    return f"{seconds(sum(times))} in {len(times)} steps{counted}{missing}"


def _steps(result: BuildResult) -> Sequence[StepResult | PreparationResult | StageResult]:
    return result.steps if result.steps else [*result.preparation, *result.stages]


def notes(result: BuildResult) -> list[str]:
    """Returns each distinct note once, with the exports that it is about; doubts about a measurement are notes too."""
    about: dict[str, list[str]] = {}
    for export in result.exports:
        doubts = "" if export.measurement is None else speed.doubts(export.measurement, in_build=True)
        for note in filter(None, [*export.notes, doubts]):
            about.setdefault(note, []).append(f"{export.format} for {export.target}")
    return [f"{note.removesuffix('.')} ({join_words(exports)})." for note, exports in about.items()]


def place(export: ExportResult) -> str:
    """Returns where an export's figures were measured, so that they are never taken for another device's."""
    if export.measurement is None:
        return "not measured"
    found = export.measurement.machine
    if export.measured_on_target:
        return f"measured on {found.cpu} ({found.architecture})"
    return f"measured on this machine: {found.cpu} ({found.architecture}), not on {export.target}"


def _shipped(result: BuildResult) -> str:
    if not result.exports:
        return "The build has no exports"
    bundles = sum(export.bundle is not None for export in result.exports)
    return f"{bundles} of {len(result.exports)} exports bundled"


def _list_checks(found: list[tuple[ExportResult, BudgetCheck]]) -> str:
    return join_words(
        [
            f"{check_title(check.name).lower()} of {export.format} for {export.target} {STATUS_TITLES[check.status]}"
            for export, check in found
        ]
    )
