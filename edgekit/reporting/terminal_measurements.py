"""Measurements on the terminal: of one model, of two with their ratio, of several that took turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.reporting import generation, load, matrix, speed, sweep, wording
from edgekit.reporting.terminal_tables import literal, make_table
from edgekit.results import AnyMeasurement, Comparison, GenerationComparison, Matrix, Sweep

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def measurement_table(measurements: Mapping[str, AnyMeasurement]) -> Table:
    """Returns one column a measurement, by its name; the machine stands in the caption."""
    table = make_table("Measured", ["", *measurements])
    found = list(measurements.values())
    table.caption = "; ".join(dict.fromkeys(wording.machine(entry.machine) for entry in found))
    for name, cells in speed.rows(found):
        table.add_row(name, *cells)
    return table


def show_measurement(measurement: AnyMeasurement, console: Console) -> None:
    """Prints one measurement, and whether the machine was quiet enough for it."""
    console.print(measurement_table({"model": measurement}))
    _show_load(measurement, console)
    _show_doubts({"model": measurement}, console)


def show_comparison(comparison: Comparison, console: Console, *, first: str = "A", second: str = "B") -> None:
    """Prints two interleaved measurements and their ratio with its interval."""
    console.print(measurement_table({first: comparison.first, second: comparison.second}))
    interval = comparison.ratio_interval
    words = wording.speed_up(comparison.ratio_p50, interval.low, interval.high, second)
    over = f"{comparison.rounds} interleaved rounds"
    if comparison.pair_ratios:
        over += f" in {len(comparison.pair_ratios)} fresh pairs of processes"
    console.print(literal(f"{first}: {words}, over {over}.", "bold"))
    if comparison.verdict is not None:
        console.print(literal(f"Verdict: {wording.judged(comparison.verdict, comparison.margin)}.", "bold"))
    _show_doubts({first: comparison.first, second: comparison.second}, console)


def show_generation_comparison(comparison: GenerationComparison, console: Console) -> None:
    """Prints language models that took turns: a table by depth, one by process, and how it was measured."""
    table = make_table("Measured in turn", list(generation.DEPTH_COLUMNS))
    table.columns[0].no_wrap = True
    for title, rows in generation.depth_rows(comparison):
        table.add_row(literal(title, "bold"))
        for index, cells in enumerate(rows):
            table.add_row(*map(literal, cells), end_section=index == len(rows) - 1)
    console.print(table)
    table = make_table("", list(generation.PROCESS_COLUMNS))
    table.columns[0].no_wrap = True
    for cells in generation.process_rows(comparison):
        table.add_row(*map(literal, cells))
    console.print(table)
    console.print(literal(f"{generation.conditions(comparison)}.", "dim"))
    _show_load(comparison.measurements[0], console)
    _show_doubts(dict(zip(comparison.names, comparison.measurements, strict=True)), console)


def show_sweep(found: Sweep, console: Console) -> None:
    """Prints classifiers that took turns: a row for each, and how it was measured."""
    table = make_table("Measured in turn", list(sweep.COLUMNS))
    table.columns[0].no_wrap = True
    for cells in sweep.rows(found):
        table.add_row(*map(literal, cells), end_section=True)
    console.print(table)
    console.print(literal(f"{sweep.conditions(found)}.", "dim"))
    _show_doubts(dict(zip(found.names, found.measurements, strict=True)), console)


def show_matrix(found: Matrix, console: Console) -> None:
    """Prints a row for each file, runtime and number of threads, and what was left out."""
    table = make_table("Measured in turn", list(matrix.TERMINAL_COLUMNS))
    table.columns[0].no_wrap = True
    for cells in matrix.terminal_rows(found):
        table.add_row(*map(literal, cells), end_section=True)
    console.print(table)
    console.print(literal(f"{matrix.conditions(found)}.", "dim"))
    for each in found.left_out:
        console.print(literal(f"Left out: {matrix.left_out(each)}", "yellow"))
    _show_doubts({matrix.name(row): row.measurement for row in found.rows}, console)


def _show_load(measurement: AnyMeasurement, console: Console) -> None:
    if measurement.under_load is not None:
        first, *others = load.lines(measurement.under_load)
        console.print(literal(first, "bold"))
        for line in others:
            console.print(literal(line, "dim"))


def _show_doubts(measurements: Mapping[str, AnyMeasurement], console: Console) -> None:
    for name, measurement in measurements.items():
        doubts = speed.doubts(measurement)
        if doubts:
            console.print(literal(doubts if len(measurements) == 1 else f"{name}: {doubts}", "yellow"))
