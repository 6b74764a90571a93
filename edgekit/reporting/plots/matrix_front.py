"""The fronts of a matrix: accuracy against the size of the files, and against the p50 of every row."""

from __future__ import annotations

from typing import Literal

from edgekit.reporting.metric import value_with_range
from edgekit.reporting.plots.front import LATENCY, SIZE, Point, draw_front
from edgekit.reporting.wording import mebibytes, milliseconds
from edgekit.results import Matrix, MatrixRow


def quality_against_size(matrix: Matrix) -> str:
    """Returns the plot of accuracy against size, a point for each file, or nothing where no accuracy is known."""
    points: dict[str, Point] = {}
    for row in matrix.rows:
        size = row.measurement.model_bytes
        if row.quality is not None and row.measurement.model_digest not in points:
            label = _short(matrix, row.model, row.format)
            tip = f"{mebibytes(size)}, {value_with_range(row.quality)}"
            points[row.measurement.model_digest] = Point(label, _kind(row), size / 2**20, row.quality, tip)
    return draw_front(list(points.values()), SIZE)


def quality_against_latency(matrix: Matrix) -> str:
    """Returns the plot of accuracy against p50, a point for each row of the fewest threads, or nothing."""
    fewest = min(row.measurement.threads for row in matrix.rows)
    points = []
    for row in matrix.rows:
        found = row.measurement
        if row.quality is not None and found.threads == fewest:
            label = f"{_short(matrix, row.model, row.format)}, {found.runtime}"
            tip = f"{milliseconds(found.p50_ms)}, {value_with_range(row.quality)}"
            points.append(Point(label, _kind(row), found.p50_ms, row.quality, tip))
    return draw_front(points, LATENCY)


def _kind(row: MatrixRow) -> Literal["stage", "export"]:
    return "stage" if row.format == "torch" else "export"


def _short(matrix: Matrix, model: str, written: str) -> str:
    """Returns what a file is called beside its point: without the model where there is one only."""
    return written if len({row.model for row in matrix.rows}) == 1 else f"{model}, {written}"
