"""What changed between two saved results, as words: rows for tables, and Markdown for a pull request."""

from __future__ import annotations

from edgekit.reporting import wording
from edgekit.reporting.markdown import escape, table
from edgekit.results import Change, Changes, Verdict

COLUMNS = ("", "before", "after", "change", "95 %", "verdict")
_SIGNS: dict[Verdict, str] = {
    "better": "\N{WHITE HEAVY CHECK MARK}",
    "worse": "\N{CROSS MARK}",
    "no difference": "=",
    "inconclusive": "?",
}


def title(changes: Changes) -> str:
    """Returns the outcome in one sentence."""
    counted = [
        f"{sum(figure.verdict == verdict for figure in changes.figures)} {verdict}"
        for verdict in ("better", "worse", "no difference", "inconclusive")
        if any(figure.verdict == verdict for figure in changes.figures)
    ]
    return f"Of the figures judged: {', '.join(counted)}." if counted else "No figure was judged."


def row(figure: Change) -> list[str]:
    """Returns the cells of `COLUMNS`."""
    verdict = "not judged"
    if figure.verdict is not None:
        margin = wording.points(figure.margin).removeprefix("+") + " points"
        allowed = margin if figure.unit == "accuracy" else wording.percent(figure.margin)
        verdict = f"{figure.verdict} (margin {allowed})"
    return [
        f"{figure.of}: {figure.name}" if figure.of else figure.name,
        _value(figure, figure.before),
        _value(figure, figure.after),
        _change(figure, figure.change),
        _range(figure),
        verdict,
    ]


def setting_rows(changes: Changes) -> list[list[str]]:
    """Returns name, before and after of what was chosen otherwise."""
    return [[setting.name, setting.before, setting.after] for setting in changes.settings]


def remarks(changes: Changes) -> list[str]:
    """Returns in one line each what was set otherwise, and what a reader must know."""
    settings = [f"Set otherwise: {name}: {before}, now {after}" for name, before, after in setting_rows(changes)]
    return [*settings, *(f"Note: {note}" for note in changes.notes)]


def render_changes(changes: Changes) -> str:
    """Returns Markdown for a pull request: the outcome, the figures, what was set otherwise, and what to know."""
    sign: Verdict = "worse" if changes.worse else "better" if _any(changes, "better") else "no difference"
    if not changes.worse and _any(changes, "inconclusive"):
        sign = "inconclusive"
    parts = [f"## {_SIGNS[sign]} {escape(changes.after)} against {escape(changes.before)}", title(changes)]
    rows = [_marked(figure) for figure in changes.figures]
    parts.append(table(["", *COLUMNS[1:-1], "verdict"], rows))
    if changes.settings:
        cells = [list(map(escape, cells)) for cells in setting_rows(changes)]
        parts.append("**Set otherwise**\n\n" + table(["setting", "before", "after"], cells))
    if changes.notes:
        parts.append("\n".join(f"- {escape(note)}" for note in changes.notes))
    return "\n\n".join(parts) + "\n"


def _any(changes: Changes, verdict: Verdict) -> bool:
    return any(figure.verdict == verdict for figure in changes.figures)


def _marked(figure: Change) -> list[str]:
    *cells, verdict = map(escape, row(figure))
    return [*cells, f"**{verdict}**" if figure.verdict in ("better", "worse") else verdict]


def _value(figure: Change, value: float) -> str:
    if figure.unit == "bytes":
        return wording.mebibytes(value)
    if figure.unit == "ms":
        return wording.milliseconds(value)
    if figure.unit == "accuracy":
        return wording.percent(value)
    return f"{wording.number(value)} tokens/s" if figure.unit == "tokens/s" else wording.number(value)


def _change(figure: Change, change: float) -> str:
    return f"{wording.points(change)} points" if figure.unit == "accuracy" else wording.times(change)


def _range(figure: Change) -> str:
    if figure.interval is None:
        return ""
    return wording.points_range(figure.interval) if figure.unit == "accuracy" else wording.number_range(figure.interval)
