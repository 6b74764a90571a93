"""Judges a value with an interval against a limit: met or missed only where the whole interval is on one side."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.results import BudgetCheck, CheckStatus, Interval


@dataclass(frozen=True)
class Found:
    """A value with its interval, and the words to judge it in."""

    name: str
    limit: float
    value: float
    interval: Interval
    words: str
    """What was found, as the beginning of a sentence."""
    allowed: str
    """The limit in words."""
    complaint: str
    """What a value beyond the limit is."""
    advice: str
    """What to do about an interval that holds the limit."""
    least: bool = False
    """True where the limit is the smallest value allowed, not the largest."""


def judge(found: Found) -> BudgetCheck:
    """Returns the check: met or missed when the whole interval is on one side, the limit itself allowed."""
    low, high = found.interval.low, found.interval.high
    wanted = f"{found.allowed} {'asked for' if found.least else 'allowed'}"
    if high < found.limit if found.least else low > found.limit:
        return as_check(found, "missed", f"{found.words}, {wanted}: {found.complaint}.")
    if low >= found.limit if found.least else high <= found.limit:
        return as_check(found, "met", f"{found.words}, {wanted}.")
    return as_check(found, "inconclusive", f"{found.words}, which does not clear {found.allowed}. {found.advice}")


def as_check(found: Found, status: CheckStatus, explanation: str) -> BudgetCheck:
    """Returns the check of what was found, with its outcome."""
    return BudgetCheck(
        name=found.name,
        limit=found.limit,
        value=found.value,
        interval=found.interval,
        status=status,
        explanation=explanation,
    )


def inconclusive(name: str, limit: float, explanation: str) -> BudgetCheck:
    """Returns the check of a limit about which nothing is known."""
    return BudgetCheck(name=name, limit=limit, value=None, status="inconclusive", explanation=explanation)
