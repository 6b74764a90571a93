"""A matrix of formats, runtimes and threads as words: a row for each against the first, and what was left out."""

from __future__ import annotations

from edgekit.reporting import metric, speed, wording
from edgekit.results import LeftOut, Matrix, MatrixRow

COLUMNS = (
    "model",
    "format",
    "runtime",
    "threads",
    "p50",
    "p95",
    "time of a call",
    "logits differ by",
    "accuracy",
    "peak memory",
    "model files",
    "load",
)


TERMINAL_COLUMNS = ("", "p50", "time of\na call", "logits\ndiffer by", "accuracy", "peak\nmemory", "model\nfiles")


def terminal_rows(matrix: Matrix) -> list[list[str]]:
    """Returns the cells of `TERMINAL_COLUMNS` for each row: what fits 80 characters, several lines a cell."""
    found = []
    for row in matrix.rows:
        measured = row.measurement
        named = f"{row.model}\n{row.format}\n{measured.runtime}, {measured.threads}T"
        p50 = wording.milliseconds(measured.p50_ms)
        accuracy = wording.ABSENT if row.quality is None else metric.value(row.quality)
        sizes = [wording.mebibytes(size) for size in (measured.peak_rss_bytes, measured.model_bytes)]
        found.append([named, p50, "\n".join(_against_first(row)), _difference(row), accuracy, *sizes])
    return found


def rows(matrix: Matrix) -> list[list[str]]:
    """Returns the cells of `COLUMNS` for each row, in the order in which they were measured."""
    return [_cells(row) for row in matrix.rows]


def conditions(matrix: Matrix) -> str:
    """Returns in one line how it was measured: rounds, scenario, machine."""
    first = matrix.rows[0].measurement
    return (
        f"{matrix.rounds} rounds in turn in {matrix.sets} fresh sets of processes, {first.batch} {wording.TIMES} "
        f"{first.length} tokens; load average {first.load_average:.2f}; {wording.machine(first.machine)}"
    )


def fastest(matrix: Matrix) -> MatrixRow:
    """Returns the row with the shortest p50."""
    return min(matrix.rows, key=lambda row: row.measurement.p50_ms)


def name(row: MatrixRow) -> str:
    """Returns what a row is called in a sentence."""
    found = row.measurement
    return f"{row.model}, {row.format} in {found.runtime}, {speed.threads(found.threads)}"


def left_out(each: LeftOut) -> str:
    """Returns what is missing and why, in one line."""
    where = f"{each.format} in {each.runtime}" if each.runtime else each.format
    return f"{each.model}, {where}: {' '.join(each.reason.split())}"


def _cells(row: MatrixRow) -> list[str]:
    found = row.measurement
    return [
        row.model,
        row.format,
        f"{found.runtime} {found.runtime_version}",
        str(found.threads),
        f"{wording.milliseconds(found.p50_ms)} ({wording.number_range(found.p50_interval_ms)})",
        wording.milliseconds(found.p95_ms),
        " ".join(_against_first(row)),
        _difference(row),
        wording.ABSENT if row.quality is None else metric.value_with_range(row.quality),
        wording.mebibytes(found.peak_rss_bytes),
        wording.mebibytes(found.model_bytes),
        wording.milliseconds(found.load_ms),
    ]


def _difference(row: MatrixRow) -> str:
    return wording.ABSENT if row.parity is None else wording.small(row.parity.max_abs_diff)


def _against_first(row: MatrixRow) -> list[str]:
    """Returns how much longer a call takes than the first row's: the ratio, its interval and the verdict."""
    if row.ratio is None:
        return [f"1{wording.TIMES}"]
    interval = f"({wording.number_range(row.ratio.ratio_interval)})"
    return [wording.times(row.ratio.ratio_p50), interval, speed.AGAINST_IT[row.ratio.verdict]]
