"""Tables for the terminal, drawn by rich: a build, and each result that a single command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.reporting import agreement, changes, estimate_errors, findings, metric, speed, wording
from edgekit.reporting.terminal_tables import literal, make_table
from edgekit.results import (
    AnyParity,
    AnyQuality,
    BudgetResult,
    BuildResult,
    Changes,
    CheckStatus,
    Estimate,
    ExportResult,
    StageResult,
    Verdict,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_TONES = {"good": "bold green", "bad": "bold red", "uncertain": "bold yellow"}
_VERDICT_STYLES: dict[Verdict | None, str] = {"better": "green", "worse": "bold red", "inconclusive": "yellow"}
_STATUS_STYLES: dict[CheckStatus, str] = {
    "met": "green",
    "missed": "bold red",
    "inconclusive": "bold yellow",
    "not-measured": "dim",
}


def show_build(result: BuildResult, console: Console) -> None:
    """Prints the stages, the exports with every check that is not met, what failed, and the verdict."""
    verdict = findings.verdict(result)
    if result.stages:
        table = stage_table(result)
        console.print(table if _fits(table, console) else stage_table(result, separator="\n"))
    if result.exports:
        _show_exports(result, console)
    for note in findings.notes(result):
        console.print(literal(f"Note: {note}", "yellow"))
    for failure in result.failures:
        console.print(literal(f"Failed: {failure}", "red"))
    console.print(literal(f"{verdict.title}.", _TONES[verdict.tone]), literal(verdict.explanation))


def _show_exports(result: BuildResult, console: Console) -> None:
    """Prints the exports as a table, or one below the other where the table would have to split words."""
    table = export_table(result)
    if _fits(table, console):
        console.print(table)
    else:
        for export in result.exports:
            console.print(export_list(export, result))
    for line in findings.measured_where(result):
        console.print(literal(line, "dim"))
    for line in estimate_errors.estimate_errors(result):
        console.print(literal(line, "dim"))
    if any(export.estimates or export.estimate_checks for export in result.exports):
        console.print(literal("~ marks an estimate: nobody measured it.", "dim italic"))


def stage_table(result: BuildResult, separator: str = " ") -> Table:
    """Returns one row a stage: quality with interval, change against the teacher, size, time.

    `separator` stands before what may go on a line of its own: intervals, and that a stage was cached.
    """
    judged = metric.build_metric(result)
    table = make_table("Stages", ["stage", f"{judged.name} (95 %)", judged.change_title, "weights", "time"])
    if result.teacher_quality is not None and findings.teacher_stage(result) is None:
        size = findings.teacher_bytes(result)
        quality = metric.value_with_range(result.teacher_quality).replace(" (", f"{separator}(")
        table.add_row("teacher", quality, "", _size(size), "")
    for stage in result.stages:
        table.add_row(*_stage_cells(stage, separator))
    return table


def export_table(result: BuildResult) -> Table:
    """Returns one row an export; estimates and figures of another machine are marked."""
    table = make_table("Exports", ["export", *_export_titles(result)])
    for column in table.columns[3:]:
        column.justify = "left"
    for export in result.exports:
        table.add_row(literal(f"{export.format}\n{export.target}"), *_export_cells(export), end_section=True)
    return table


def export_list(export: ExportResult, result: BuildResult) -> Table:
    """Returns the same of one export, a line or more for each figure: for narrow terminals."""
    table = make_table(f"{export.format} for {export.target}", ["", ""])
    table.columns[1].justify = "left"
    for title, cell in zip(_export_titles(result), _export_cells(export), strict=True):
        table.add_row(literal(title), cell)
    return table


def _export_titles(result: BuildResult) -> list[str]:
    judged = metric.build_metric(result)
    return ["bytes", f"{judged.name} (95 %)", "parity", speed.summary_title(result), "peak memory", "budget"]


def _export_cells(export: ExportResult) -> list[Text]:
    """Returns bytes, quality of the exported file itself, parity, speed, memory and budget."""
    quality = export.quality
    return [
        literal(f"{export.bytes:,}"),
        literal("not evaluated", "dim") if quality is None else literal(metric.value_with_range(quality)),
        _parity_cell(export.parity),
        _latency_cell(export),
        _memory_cell(export),
        _budget_cell(export),
    ]


def budget_table(budget: BudgetResult) -> Table:
    """Returns one row a check."""
    table = make_table("Budget", ["limit on", "found", "limit", "result"])
    for check in budget.checks:
        interval = f" ({wording.check_range(check)})" if check.interval else ""
        table.add_row(
            literal(wording.check_title(check.name)),
            wording.check_amount(check.name, check.value) + interval,
            wording.check_amount(check.name, check.limit),
            literal(wording.STATUS_TITLES[check.status], _STATUS_STYLES[check.status]),
        )
    return table


def quality_table(quality: AnyQuality) -> Table:
    """Returns the figures of one evaluation."""
    table = make_table(f"Quality on {quality.split}", ["", ""])
    for title, figure in metric.details(quality):
        table.add_row(literal(title), figure)
    return table


def parity_table(parity: AnyParity) -> Table:
    """Returns the figures of one parity check and what failed."""
    table = make_table(f"Parity under {parity.runtime}", ["", ""])
    table.add_row("result", literal(agreement.verdict(parity), _STATUS_STYLES[agreement.status(parity)]))
    for title, figure in agreement.rows(parity):
        table.add_row(title, figure)
    for failure in parity.failures:
        table.add_row("failed", literal(failure, "red"))
    return table


def show_changes(found: Changes, console: Console) -> None:
    """Prints what changed from one saved result to another."""
    console.print(literal(f"{found.after} against {found.before}", "bold"))
    table = make_table("", list(changes.COLUMNS))
    for figure in found.figures:
        table.add_row(*(literal(cell, _VERDICT_STYLES.get(figure.verdict, "")) for cell in changes.row(figure)))
    console.print(table)
    for remark in changes.remarks(found):
        console.print(literal(remark, "yellow"))
    console.print(literal(changes.title(found), "bold"))


def estimate_table(estimates: list[Estimate]) -> Table:
    """Returns the estimates with formula and assumptions, in another colour and script than measurements."""
    table = make_table("Estimates: nobody measured these", ["quantity", "range", "formula", "holds only if"])
    for estimate in estimates:
        cells = (estimate.quantity, wording.estimate(estimate), estimate.formula, "; ".join(estimate.assumptions))
        table.add_row(*(literal(cell, "italic magenta") for cell in cells))
    return table


def _stage_cells(stage: StageResult, separator: str) -> list[Text]:
    time = wording.seconds(stage.seconds) + (f"{separator}cached" if stage.cached else "")
    change = "" if stage.quality.headline.change is None else metric.change_with_range(stage.quality)
    quality, change = (text.replace(" (", f"{separator}(") for text in (metric.value_with_range(stage.quality), change))
    return [literal(cell) for cell in (stage.kind, quality, change, _size(stage.model_bytes), time)]


def _latency_cell(export: ExportResult) -> Text:
    cell = literal("")
    for estimate in export.estimates:
        if estimate.unit != "bytes":
            cell.append(f"{wording.estimate(estimate)}\n", style="italic magenta")
    if export.measurement is None:
        return cell.append("not measured", style="dim")
    quantiles = speed.summary(export.measurement)
    if export.measured_on_target:
        return cell.append(quantiles)
    return cell.append(f"{quantiles}\non this machine", style="dim")


def _memory_cell(export: ExportResult) -> Text:
    if export.measurement is None:
        return literal("not measured", "dim")
    peak = wording.mebibytes(export.measurement.peak_rss_bytes)
    return literal(peak) if export.measured_on_target else literal(f"{peak}\non this machine", "dim")


def _parity_cell(parity: AnyParity) -> Text:
    if not parity.passed:
        return literal(agreement.verdict(parity), _STATUS_STYLES[agreement.status(parity)])
    return literal("passed", "green").append(f"\n{agreement.largest(parity)}", style="default")


def _budget_cell(export: ExportResult) -> Text:
    cell = literal("met", "green") if export.budget.met else literal("not met", "bold red")
    for check in export.budget.checks:
        if check.status != "met":
            words = f"\n{wording.check_title(check.name).lower()} {wording.STATUS_TITLES[check.status]}"
            cell.append(words, style=_STATUS_STYLES[check.status])
    return cell if export.bundle else cell.append("\nno bundle", style="default")


def _fits(table: Table, console: Console) -> bool:
    """Returns whether a table has room for its longest lines, so that nothing in it is wrapped."""
    from rich.measure import Measurement

    unbounded = console.options.update(max_width=10_000)
    return Measurement.get(console, unbounded, table).maximum <= console.width


def _size(size: int) -> str:
    return wording.mebibytes(size) if size else ""
