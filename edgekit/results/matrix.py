"""One model or several in every format, runtime and number of threads, measured in turn in one run."""

from __future__ import annotations

from pydantic import Field

from edgekit.results.base import Result
from edgekit.results.measurement import Measurement, TurnRatio
from edgekit.results.parity import Parity
from edgekit.results.quality import Quality


class MatrixRow(Result):
    """One file in one runtime with one number of threads."""

    model: str
    """What the model is called: the directory it was read from."""
    format: str
    """The format, with the dialect where there are two; `torch` for the model itself."""
    parity: Parity | None
    """Of the file in this runtime against torch; None: it is torch, or nothing tells which model the file was made of,
    or there was no data."""
    quality: Quality | None
    """Of the file in the runtime that ships its format, or else in the first of its rows; None where there was no
    data."""
    measurement: Measurement
    ratio: TurnRatio | None
    """Against the first row; None for it."""


class LeftOut(Result):
    """A file or a row that the matrix could not have."""

    model: str
    format: str
    runtime: str
    """Empty: no file of this format was made."""
    reason: str


class Matrix(Result):
    """What `edgekit matrix` found: `matrix.json`."""

    schema_version: int = 1
    rows: list[MatrixRow] = Field(min_length=2)
    left_out: list[LeftOut]
    rounds: int
    """Times that all took turns."""
    sets: int
    """Fresh sets of processes."""
