"""One budget check as a small bar: what was found, its interval, and the limit."""

from __future__ import annotations

from edgekit.reporting.plots.svg import Axis, Box, element, line, rectangle
from edgekit.reporting.wording import check_amount, check_range, check_title
from edgekit.results import BudgetCheck

WIDTH, HEIGHT = 150.0, 20.0


def budget_bar(check: BudgetCheck) -> str:
    """Returns the bar; a check that was not measured is an empty dashed frame up to its limit."""
    found = max(check.value or 0.0, 0.0)
    high = max(check.interval.high, 0.0) if check.interval else found
    axis = Axis(0, max(found, high, check.limit, 1e-12) * 1.12, 0, WIDTH)
    limit = axis.place(check.limit)
    parts = [line(limit, 1, limit, HEIGHT - 1, "limit")]
    if check.value is None:
        parts.insert(0, rectangle(Box(0.5, 6, limit - 0.5, 14), "unmeasured"))
    else:
        parts.insert(0, rectangle(Box(0, 6, max(axis.place(found), 1.5), 14), f"found {check.status}"))
    if check.interval is not None:
        low = axis.place(max(check.interval.low, 0.0))
        parts += [line(low, 10, axis.place(high), 10, "interval")]
    return element(
        "svg",
        *parts,
        width=WIDTH,
        height=HEIGHT,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=_in_words(check),
        class_="bar",
    )


def _in_words(check: BudgetCheck) -> str:
    limit = check_amount(check.name, check.limit)
    if check.value is None:
        return f"{check_title(check.name)}: not measured, limit {limit}"
    interval = f" ({check_range(check)})" if check.interval else ""
    return f"{check_title(check.name)}: found {check_amount(check.name, check.value)}{interval}, limit {limit}"
