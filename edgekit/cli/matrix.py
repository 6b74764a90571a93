"""`edgekit matrix`: models in every format and runtime, in one table and one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.options import AsJson, Seed
from edgekit.cli.terminal import listening, write_json_line

if TYPE_CHECKING:
    from edgekit.benchmarking.series import Sampling
    from edgekit.results import Matrix

MATRIX_FILE, REPORT_FILE = "matrix.json", "matrix.html"


def matrix(
    models: list[Path],
    *,
    out: Path = Path("matrix"),
    data: Path | None = None,
    formats: list[str] | None = None,
    runtimes: list[str] | None = None,
    threads: tuple[int, ...] = (1,),
    length: int = 64,
    max_rows: int | None = None,
    pairs: int = 5,
    min_seconds: float = 3.0,
    seed: Seed = 0,
    json: AsJson = False,
) -> int:
    """Write classifiers in every format, check and judge each file, and measure all of them in turn in every runtime.

    Ends in one table, OUT/matrix.json and OUT/matrix.html with the front of size, quality and latency. Files are kept
    in OUT: a run that was stopped goes on there.

    Parameters
    ----------
    models
        Torch models, which are exported, and exports, which are taken as they are; each an artifact.
    out
        Directory of the files and results.
    data
        Prepared data: its validation split is what files are checked on, its test split what they are judged on.
        Without it nothing is checked or judged.
    formats
        Formats to write torch models in; by default all that hold classifiers.
    runtimes
        Runtimes to measure in; by default all at hand.
    threads
        Numbers of threads.
    length
        Tokens of the one row of a call.
    max_rows
        Rows of the test split to judge on; all by default.
    pairs
        Fresh sets of processes in which all take turns, at least 5.
    min_seconds
        Seconds of sampling of each row at least.
    """
    from edgekit.artifact import Artifact, write_atomically
    from edgekit.matrix import MatrixPlan, build_matrix
    from edgekit.reporting.html import render_matrix

    plan = MatrixPlan(
        out=out,
        formats=_known_formats(formats),
        runtimes=None if runtimes is None else tuple(runtimes),
        threads=tuple(dict.fromkeys(threads)),
        length=length,
        max_rows=max_rows,
        sampling=_sampling(pairs, min_seconds),
        seed=seed,
    )
    opened = [Artifact.open(path) for path in models]
    prepared = None if data is None else Artifact.open(data, kind="data")
    with listening(as_json=json) as events:
        found = build_matrix(opened, prepared, plan, events)
    write_atomically(out / MATRIX_FILE, found.model_dump_json(indent=2) + "\n")
    write_atomically(out / REPORT_FILE, render_matrix(found))
    _tell(found, out, as_json=json)
    return 0


def _known_formats(names: list[str] | None) -> tuple[str, ...] | None:
    from edgekit.errors import UsageError
    from edgekit.formats import FORMATS
    from edgekit.spelling import did_you_mean

    for name in names or []:
        if name not in FORMATS:
            raise UsageError(
                f"--formats: '{name}' is unknown.{did_you_mean(name, FORMATS)} Known: {', '.join(FORMATS)}."
            )
    return None if names is None else tuple(names)


def _sampling(pairs: int, min_seconds: float) -> Sampling:
    from edgekit.benchmarking.series import Sampling
    from edgekit.errors import UsageError

    if pairs < 5 or min_seconds <= 0:
        raise UsageError(
            f"found --pairs {pairs} and --min-seconds {min_seconds:g}, expected at least 5, and more than 0."
        )
    return Sampling(pairs=pairs, min_seconds=min_seconds)


def _tell(found: Matrix, out: Path, *, as_json: bool) -> None:
    if as_json:
        write_json_line({"kind": "result", "matrix": found.model_dump(mode="json")})
        return
    from rich.console import Console

    from edgekit.reporting.terminal_measurements import show_matrix

    show_matrix(found, Console())
    print(f"Report: {out / REPORT_FILE}")
