"""Tables for the terminal, drawn by rich: a build, and each result that a single command prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.reporting import agreement, changes, estimate_errors, findings, generation, metric, speed, wording
from edgekit.results import (
    AnyMeasurement,
    AnyParity,
    AnyQuality,
    BudgetResult,
    BuildResult,
    Changes,
    CheckStatus,
    Comparison,
    Estimate,
    ExportResult,
    GenerationComparison,
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
        console.print(_text(f"Note: {note}", "yellow"))
    for failure in result.failures:
        console.print(_text(f"Failed: {failure}", "red"))
    console.print(_text(f"{verdict.title}.", _TONES[verdict.tone]), _text(verdict.explanation))


def _show_exports(result: BuildResult, console: Console) -> None:
    """Prints the exports as a table, or one below the other where the table would have to split words."""
    table = export_table(result)
    if _fits(table, console):
        console.print(table)
    else:
        for export in result.exports:
            console.print(export_list(export, result))
    for line in findings.measured_where(result):
        console.print(_text(line, "dim"))
    for line in estimate_errors.estimate_errors(result):
        console.print(_text(line, "dim"))
    if any(export.estimates or export.estimate_checks for export in result.exports):
        console.print(_text("~ marks an estimate: nobody measured it.", "dim italic"))


def stage_table(result: BuildResult, separator: str = " ") -> Table:
    """Returns one row a stage: quality with interval, change against the teacher, size, time.

    `separator` stands before what may go on a line of its own: intervals, and that a stage was cached.
    """
    judged = metric.build_metric(result)
    table = _table("Stages", ["stage", f"{judged.name} (95 %)", judged.change_title, "weights", "time"])
    if result.teacher_quality is not None and findings.teacher_stage(result) is None:
        size = findings.teacher_bytes(result)
        quality = metric.value_with_range(result.teacher_quality).replace(" (", f"{separator}(")
        table.add_row("teacher", quality, "", _size(size), "")
    for stage in result.stages:
        table.add_row(*_stage_cells(stage, separator))
    return table


def export_table(result: BuildResult) -> Table:
    """Returns one row an export; estimates and figures of another machine are marked."""
    table = _table("Exports", ["export", *_export_titles(result)])
    for column in table.columns[3:]:
        column.justify = "left"
    for export in result.exports:
        table.add_row(_text(f"{export.format}\n{export.target}"), *_export_cells(export), end_section=True)
    return table


def export_list(export: ExportResult, result: BuildResult) -> Table:
    """Returns the same of one export, a line or more for each figure: for narrow terminals."""
    table = _table(f"{export.format} for {export.target}", ["", ""])
    table.columns[1].justify = "left"
    for title, cell in zip(_export_titles(result), _export_cells(export), strict=True):
        table.add_row(_text(title), cell)
    return table


def _export_titles(result: BuildResult) -> list[str]:
    judged = metric.build_metric(result)
    return ["bytes", f"{judged.name} (95 %)", "parity", speed.summary_title(result), "peak memory", "budget"]


def _export_cells(export: ExportResult) -> list[Text]:
    """Returns bytes, quality of the exported file itself, parity, speed, memory and budget."""
    quality = export.quality
    return [
        _text(f"{export.bytes:,}"),
        _text("not evaluated", "dim") if quality is None else _text(metric.value_with_range(quality)),
        _parity_cell(export.parity),
        _latency_cell(export),
        _memory_cell(export),
        _budget_cell(export),
    ]


def budget_table(budget: BudgetResult) -> Table:
    """Returns one row a check."""
    table = _table("Budget", ["limit on", "found", "limit", "result"])
    for check in budget.checks:
        interval = f" ({wording.check_range(check)})" if check.interval else ""
        table.add_row(
            _text(wording.check_title(check.name)),
            wording.check_amount(check.name, check.value) + interval,
            wording.check_amount(check.name, check.limit),
            _text(wording.STATUS_TITLES[check.status], _STATUS_STYLES[check.status]),
        )
    return table


def quality_table(quality: AnyQuality) -> Table:
    """Returns the figures of one evaluation."""
    table = _table(f"Quality on {quality.split}", ["", ""])
    for title, figure in metric.details(quality):
        table.add_row(_text(title), figure)
    return table


def parity_table(parity: AnyParity) -> Table:
    """Returns the figures of one parity check and what failed."""
    table = _table(f"Parity under {parity.runtime}", ["", ""])
    table.add_row("result", _text(agreement.verdict(parity), _STATUS_STYLES[agreement.status(parity)]))
    for title, figure in agreement.rows(parity):
        table.add_row(title, figure)
    for failure in parity.failures:
        table.add_row("failed", _text(failure, "red"))
    return table


def measurement_table(measurements: Mapping[str, AnyMeasurement]) -> Table:
    """Returns one column a measurement, by its name; the machine stands in the caption."""
    table = _table("Measured", ["", *measurements])
    found = list(measurements.values())
    table.caption = "; ".join(dict.fromkeys(wording.machine(entry.machine) for entry in found))
    for name, cells in speed.rows(found):
        table.add_row(name, *cells)
    return table


def show_measurement(measurement: AnyMeasurement, console: Console) -> None:
    """Prints one measurement, and whether the machine was quiet enough for it."""
    console.print(measurement_table({"model": measurement}))
    _show_doubts({"model": measurement}, console)


def show_comparison(comparison: Comparison, console: Console, *, first: str = "A", second: str = "B") -> None:
    """Prints two interleaved measurements and their ratio with its interval."""
    console.print(measurement_table({first: comparison.first, second: comparison.second}))
    interval = comparison.ratio_interval
    words = wording.speed_up(comparison.ratio_p50, interval.low, interval.high, second)
    over = f"{comparison.rounds} interleaved rounds"
    if comparison.pair_ratios:
        over += f" in {len(comparison.pair_ratios)} fresh pairs of processes"
    console.print(_text(f"{first}: {words}, over {over}.", "bold"))
    if comparison.verdict is not None:
        console.print(_text(f"Verdict: {wording.judged(comparison.verdict, comparison.margin)}.", "bold"))
    _show_doubts({first: comparison.first, second: comparison.second}, console)


def show_generation_comparison(comparison: GenerationComparison, console: Console) -> None:
    """Prints language models that took turns: a table by depth, one by process, and how it was measured."""
    table = _table("Measured in turn", list(generation.DEPTH_COLUMNS))
    table.columns[0].no_wrap = True
    for title, rows in generation.depth_rows(comparison):
        table.add_row(_text(title, "bold"))
        for index, cells in enumerate(rows):
            table.add_row(*map(_text, cells), end_section=index == len(rows) - 1)
    console.print(table)
    table = _table("", list(generation.PROCESS_COLUMNS))
    table.columns[0].no_wrap = True
    for cells in generation.process_rows(comparison):
        table.add_row(*map(_text, cells))
    console.print(table)
    console.print(_text(f"{generation.conditions(comparison)}.", "dim"))
    _show_doubts(dict(zip(comparison.names, comparison.measurements, strict=True)), console)


def show_changes(found: Changes, console: Console) -> None:
    """Prints what changed from one saved result to another."""
    console.print(_text(f"{found.after} against {found.before}", "bold"))
    table = _table("", list(changes.COLUMNS))
    for figure in found.figures:
        table.add_row(*(_text(cell, _VERDICT_STYLES.get(figure.verdict, "")) for cell in changes.row(figure)))
    console.print(table)
    for remark in changes.remarks(found):
        console.print(_text(remark, "yellow"))
    console.print(_text(changes.title(found), "bold"))


def estimate_table(estimates: list[Estimate]) -> Table:
    """Returns the estimates with formula and assumptions, in another colour and script than measurements."""
    table = _table("Estimates: nobody measured these", ["quantity", "range", "formula", "holds only if"])
    for estimate in estimates:
        cells = (estimate.quantity, wording.estimate(estimate), estimate.formula, "; ".join(estimate.assumptions))
        table.add_row(*(_text(cell, "italic magenta") for cell in cells))
    return table


def _show_doubts(measurements: Mapping[str, AnyMeasurement], console: Console) -> None:
    for name, measurement in measurements.items():
        doubts = speed.doubts(measurement)
        if doubts:
            console.print(_text(doubts if len(measurements) == 1 else f"{name}: {doubts}", "yellow"))


def _stage_cells(stage: StageResult, separator: str) -> list[Text]:
    time = wording.seconds(stage.seconds) + (f"{separator}cached" if stage.cached else "")
    change = "" if stage.quality.headline.change is None else metric.change_with_range(stage.quality)
    quality, change = (text.replace(" (", f"{separator}(") for text in (metric.value_with_range(stage.quality), change))
    return [_text(cell) for cell in (stage.kind, quality, change, _size(stage.model_bytes), time)]


def _latency_cell(export: ExportResult) -> Text:
    cell = _text("")
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
        return _text("not measured", "dim")
    peak = wording.mebibytes(export.measurement.peak_rss_bytes)
    return _text(peak) if export.measured_on_target else _text(f"{peak}\non this machine", "dim")


def _parity_cell(parity: AnyParity) -> Text:
    if not parity.passed:
        return _text(agreement.verdict(parity), _STATUS_STYLES[agreement.status(parity)])
    return _text("passed", "green").append(f"\n{agreement.largest(parity)}", style="default")


def _budget_cell(export: ExportResult) -> Text:
    cell = _text("met", "green") if export.budget.met else _text("not met", "bold red")
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


def _table(title: str, columns: list[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, caption_justify="left")
    table.show_header = any(columns)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _text(content: str, style: str = "") -> Text:
    """Returns literal text: square brackets in it are no markup."""
    from rich.text import Text

    return Text(wording.printable(content), style=style)
