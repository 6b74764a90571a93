"""A choice of lowerings on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.exporters.lowering_choice import LinearChoice, LoweringChoice, TriedLowering
from edgekit.reporting import speed, wording
from edgekit.reporting.terminal_tables import literal, make_table
from edgekit.results import Conditions

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = ["linear", "", "written as", "p50", "of the usual", "chosen"]


def show_choice(choice: LoweringChoice, console: Console) -> None:
    """Prints a row for each way of writing the linears of each shape, and how it was measured."""
    table = make_table("Ways of writing linears, measured in turn", _COLUMNS)
    coding = ""
    for linear in choice.linears:
        if linear.shape.coding != coding:
            coding = linear.shape.coding
            table.add_row(literal(f"{coding}:", "bold"))
        for place, tried in enumerate(linear.tried):
            is_last = place == len(linear.tried) - 1
            name = [linear.shape.size, f"{len(linear.modules)} x"] if place == 0 else ["", ""]
            table.add_row(*map(literal, [*name, *_cells(linear, tried)]), end_section=is_last)
    console.print(table)
    console.print(
        literal(
            f"{choice.scenario}; load average {choice.load_average:.2f}; {wording.machine(choice.machine)}. A time is "
            "that of one call of up to 8 linears of the shape.",
            "dim",
        )
    )
    doubt = doubts(choice)
    if doubt:
        console.print(literal(doubt, "yellow"))


def doubts(choice: LoweringChoice) -> str:
    """Returns one sentence where the machine was not quiet while linears were measured, else nothing."""
    measured = [linear for linear in choice.linears if linear.conditions is not None]
    disturbed = [linear for linear in measured if speed.disturbances(linear.conditions)]
    if not disturbed:
        return ""
    worst = max(disturbed, key=lambda linear: _busy(linear.conditions))
    reasons = wording.join_words(speed.disturbances(worst.conditions))
    return (
        f"The machine was not quiet while {len(disturbed)} of {len(measured)} were measured: at worst {reasons}. "
        "Measure again when nothing else runs."
    )


def _busy(conditions: Conditions | None) -> float:
    return 0.0 if conditions is None else (conditions.other_work_share or 0.0) + (conditions.stolen_share or 0.0)


def _cells(linear: LinearChoice, tried: TriedLowering) -> list[str]:
    chosen = "yes" if tried.lowering == linear.chosen else ""
    if tried.refused is not None:
        reason = tried.refused if tried.difference is None else f"differs from torch by {tried.difference:.2g}"
        return [tried.lowering, "not this way", reason, chosen]
    if tried.p50_ms is None:
        return [tried.lowering, "the only way", "", chosen]
    if tried.ratio_p50 is None or tried.ratio_interval is None:
        return [tried.lowering, wording.milliseconds(tried.p50_ms), "1", chosen]
    low, high = tried.ratio_interval.low, tried.ratio_interval.high
    return [
        tried.lowering,
        wording.milliseconds(tried.p50_ms),
        f"{tried.ratio_p50:.2f} ({low:.2f} to {high:.2f})",
        chosen,
    ]
