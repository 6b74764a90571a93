"""The Markdown report: short enough for a pull request comment, with the details folded."""

from __future__ import annotations

import re

from edgekit.reporting import agreement, estimate_errors, findings, metric, speed, wording
from edgekit.results import BudgetCheck, BuildResult, Estimate, ExportResult, StageResult

_SIGNS = {
    "good": "\N{WHITE HEAVY CHECK MARK}",
    "bad": "\N{CROSS MARK}",
    "uncertain": "\N{BLACK QUESTION MARK ORNAMENT}",
}


def render_markdown(result: BuildResult) -> str:
    """Returns the verdict, what failed, the stages and the exports, then the budgets and estimates folded."""
    verdict = findings.verdict(result)
    parts = [
        f"## {_SIGNS[verdict.tone]} {escape(result.name)}: {escape(verdict.title)}",
        f"{escape(verdict.explanation)} Exit code {result.exit_code}, seed {result.seed}.",
    ]
    if result.failures:
        parts.append("**What failed**\n\n" + "\n".join(f"- {escape(failure)}" for failure in result.failures))
    found = findings.notes(result)
    if found:
        parts.append("**Worth knowing**\n\n" + "\n".join(f"- {escape(note)}" for note in found))
    if result.exports:
        parts.append(table(_export_header(result), [_export_row(export) for export in result.exports]))
        parts += map(escape, findings.measured_where(result))
    if result.stages:
        parts.append(table(_stage_header(result), [_stage_row(stage) for stage in result.stages]))
    if findings.budget_checks(result):
        rows = [_check_row(export, check) for export, check in findings.budget_checks(result)]
        parts.append(_fold("Budget checks", table(_CHECK_HEADER, rows)))
    estimates = _estimates(result)
    if estimates:
        parts.append(_fold("Estimates: nobody measured these", "\n".join(estimates)))
    errors = estimate_errors.estimate_errors(result)
    if errors:
        parts.append(_fold("Estimates against measurements", "\n".join(f"- {escape(error)}" for error in errors)))
    return "\n\n".join(parts) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table; cells are Markdown already, columns of figures are aligned right."""
    rule = ["---" if name in _WORDS else "---:" for name in header]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def escape(text: str) -> str:
    """Returns text that Markdown and HTML take literally, on one line."""
    flat = " ".join(wording.printable(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#@])", r"\\\1", flat)


_CHECK_HEADER = ["export", "limit on", "found", "limit", "result", "why"]
_WORDS = {
    *("export", "stage", "parity", "p50 / p95", "first token / decode", "against float32", "peak memory", "budget"),
    *("limit on", "result", "why"),
    *("", "verdict", "setting"),
}
"""Titles of columns that hold words: they are aligned left."""


def _stage_header(result: BuildResult) -> list[str]:
    judged = metric.build_metric(result)
    return ["stage", f"{judged.name} (95 %)", judged.change_title, "as teacher", "weights", "time"]


def _export_header(result: BuildResult) -> list[str]:
    name, summary = metric.build_metric(result).name, speed.summary_title(result)
    return ["export", "bytes", name, "parity", summary, "against float32", "peak memory", "budget"]


def _stage_row(stage: StageResult) -> list[str]:
    quality = stage.quality
    return [
        escape(stage.kind),
        metric.value_with_range(quality),
        metric.change_with_range(quality),
        metric.agreement(quality),
        wording.mebibytes(stage.model_bytes) if stage.model_bytes else wording.ABSENT,
        wording.seconds(stage.seconds) + (" (cached)" if stage.cached else ""),
    ]


def _export_row(export: ExportResult) -> list[str]:
    found = export.measurement
    mark = "" if export.measured_on_target else "<br>on this machine, not the target"
    latency, memory, ratio = "not measured", "not measured", wording.ABSENT
    if found is not None:
        latency = f"{speed.summary(found)}{mark}"
        memory = f"{wording.mebibytes(found.peak_rss_bytes)}{mark}"
    for estimate in export.estimates:
        if estimate.unit != "bytes":
            latency = f"*{escape(wording.estimate(estimate))}*<br>{latency}"
    if export.float_comparison is not None:
        ratio = f"{wording.times(export.float_comparison.ratio_p50)} the speed"
    verdict = "met" if export.budget.met else "**not met**"
    return [
        f"{escape(export.format)} for {escape(export.target)}",
        f"{export.bytes:,}",
        metric.value(export.quality) if export.quality else wording.ABSENT,
        agreement.largest(export.parity) if export.parity.passed else f"**{agreement.verdict(export.parity)}**",
        latency,
        ratio,
        memory,
        verdict if export.bundle else f"{verdict}, no bundle",
    ]


def _check_row(export: ExportResult, check: BudgetCheck) -> list[str]:
    interval = f" ({wording.check_range(check)})" if check.interval else ""
    status = wording.STATUS_TITLES[check.status]
    return [
        f"{escape(export.format)} for {escape(export.target)}",
        escape(wording.check_title(check.name)),
        wording.check_amount(check.name, check.value) + interval,
        wording.check_amount(check.name, check.limit),
        status if check.status in ("met", "not-measured") else f"**{status}**",
        escape(check.explanation),
    ]


def _estimates(result: BuildResult) -> list[str]:
    return [_estimate(export, estimate) for export in result.exports for estimate in export.estimates]


def _estimate(export: ExportResult, estimate: Estimate) -> str:
    assumptions = "; ".join(part.removesuffix(".") for part in estimate.assumptions)
    return (
        f"- {escape(wording.estimated(estimate, export.target))}: *{escape(wording.estimate(estimate))}*. "
        f"Formula: {escape(estimate.formula.removesuffix('.'))}. Holds only if: {escape(assumptions)}."
    )


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"
