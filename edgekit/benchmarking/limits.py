"""Which limits of a budget make sense for which task, and what stands in for one that does not."""

from __future__ import annotations

from edgekit.models.tasks import TaskKind
from edgekit.target import Budget

_ANYWHERE = frozenset({"file_bytes", "peak_memory_bytes"})
TASK_LIMITS: dict[TaskKind, frozenset[str]] = {
    "text-classification": _ANYWHERE | {"p95_ms", "quality_drop"},
    "causal-lm": _ANYWHERE | {"first_token_ms", "decode_tokens_per_s", "perplexity_ratio", "answered"},
}
"""Limits that a task's models can be judged by."""

_INSTEAD = {
    "p95_ms": "first_token_ms and decode_tokens_per_s",
    "quality_drop": "perplexity_ratio",
    "first_token_ms": "p95_ms",
    "decode_tokens_per_s": "p95_ms",
    "perplexity_ratio": "quality_drop",
    "answered": "quality_drop",
}


def misplaced_limits(budget: Budget, task: TaskKind, where: str) -> list[str]:
    """Returns one sentence for each limit that says nothing of the task's models; `where` names the budget."""
    return [
        f"{where}.{name}: found a limit that does not fit the task '{task}'. Use {_INSTEAD[name]} instead."
        for name in budget.model_dump(exclude_none=True)
        if name not in TASK_LIMITS[task]
    ]


def merge_budgets(budgets: list[Budget], task: TaskKind) -> Budget:
    """Returns the limits that fit the task; a later budget's go before an earlier one's."""
    merged: dict[str, float] = {}
    for budget in budgets:
        merged.update(budget.model_dump(exclude_none=True))
    return Budget.model_validate({name: limit for name, limit in merged.items() if name in TASK_LIMITS[task]})
