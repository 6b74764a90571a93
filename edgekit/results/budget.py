"""Limits and whether they were kept."""

from __future__ import annotations

from typing import Literal

from edgekit.results.base import Interval, Result

CheckStatus = Literal["met", "missed", "inconclusive", "not-measured"]


class BudgetCheck(Result):
    """One limit of a budget and what was found."""

    name: str
    """What is limited: the name of a field of `Budget`, such as `file_bytes` or `decode_tokens_per_s`."""
    limit: float
    value: float | None
    """What was found; None when it was not measured on such a device."""
    interval: Interval | None = None
    """The value's confidence interval, where it has one."""
    status: CheckStatus
    explanation: str
    """One sentence for people: found, limit, why."""


class BudgetResult(Result):
    """All limits of one export on one target."""

    met: bool
    """True when no check was missed or inconclusive."""
    checks: list[BudgetCheck]
