"""One student in every format, precision, runtime and number of threads, and as other tools export it, in one run.

    python benchmarks/runtime_matrix.py [--pairs 5] [--quick] [--formats FORMAT ...]
        [--student MODEL --data DATA]

The float32 student, its int8 codes and its 4-bit codes (groups of 32, or by channel where a format has no groups; float
activations) are exported to every format that holds classifiers; optimum-onnx and Olive make their files of the float32
student in environments of their own.
Each file is first compared with torch on validation text under each runtime that opens it; then all take turns in
edgekit's own harness, 1 x 64 tokens, in fresh sets of processes, with one thread and then with two.

The student is that of a finished build, or `--student`, a float model artifact, with `--data`, prepared text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from contenders import models_of
from matrix_rows import BASE_FORMAT, LENGTH, Agreement, FloatReference, LeftOut, Row, RowMaker, reason_of
from matrix_table import runtime_matrix_table
from measuring import ROOT, make_parser, say, tell_stages, write_result
from onnx_peers import TOOLS, PeerFiles, make_peer_files

from edgekit.artifact import Artifact
from edgekit.benchmarking.machine import load_average
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import Scenario, random_scenario
from edgekit.benchmarking.series import Sampling, Series
from edgekit.benchmarking.turns import Rounds, take_turns
from edgekit.benchmarking.verdict import paired_ratio
from edgekit.cache import Cache
from edgekit.contract import StageInputs
from edgekit.errors import EdgekitError
from edgekit.events import Event
from edgekit.exporters.check_stage import CheckConfig
from edgekit.formats import FORMATS
from edgekit.quantization.stage import QuantizeConfig
from edgekit.results import Measurement

THREADS = (1, 2)
PACKAGES = ("onnxruntime", "openvino", "ai-edge-litert", "litert-torch", "executorch", "torch", "transformers", "numpy")
FOUR_BITS = QuantizeConfig(bits=4, group_size=32, activations="float")
BY_CHANNEL = QuantizeConfig(bits=4, activations="float")
PRECISIONS = ("int8", "int4", "float32")
SAMPLING = Sampling(min_samples=30, min_seconds=1.5, max_warmup_s=3.0)
"""With about fifty rows: what keeps two numbers of threads and five sets within a quarter of an hour."""
QUICK = Sampling(min_samples=2, min_seconds=0.01, max_warmup_s=0.2, pairs=2)
QUICK_CHECK = CheckConfig(rows=32, label_agreement=0.9, share_above_own=0.7)
"""Of few texts on a head that was never trained, one or two may get another label by rounding."""
TRIAL_S = 60.0
PROGRESS_S = 20.0


@dataclass(frozen=True)
class Group:
    """Rows that took turns with one number of threads."""

    threads: int
    rows: list[Row]
    measurements: list[Measurement]
    sets: list[Rounds]

    def ratio(self, place: int, base: int) -> tuple[float, list[float]] | None:
        """Returns the time of a row over that of another in the same rounds, with its interval; None for itself."""
        if place == base:
            return None
        blocks = [[medians[place] / medians[base] for medians in rounds] for rounds in self.sets]
        ratio, interval = paired_ratio(blocks, seed=0)
        return ratio, [interval.low, interval.high]

    def base_of(self, precision: str) -> int:
        """Returns the place of edgekit's own file of a precision in onnxruntime."""
        return next(place for place, row in enumerate(self.rows) if row.is_base and row.precision == precision)


def measure(rows: list[Row], threads: int, sampling: Sampling, left_out: LeftOut) -> Group:
    """Returns the rows measured in turn; one that cannot be run with so many threads is left out.

    Raises:
        EdgekitError: the measurement failed, and no row fails by itself, or one does that others are compared with.
    """
    scenario = random_scenario(rows[0].artifact, 1, LENGTH, seed=0)
    series = [Series(Subject(row.artifact, row.runtime, scenario, threads)) for row in rows]
    try:
        sets = take_turns(series, sampling, seed=0, events=_Progress(len(rows), threads, sampling.pairs))
        return Group(threads, rows, [each.summarize() for each in series], sets)
    except EdgekitError as error:
        say(f"the measurement failed ({error}); trying every row by itself")
        working = [row for row in rows if runs_alone(row, scenario, threads, left_out)]
        if len(working) == len(rows):
            raise
    return measure(working, threads, sampling, left_out)


def runs_alone(row: Row, scenario: Scenario, threads: int, left_out: LeftOut) -> bool:
    """Returns whether a row runs in a process of its own; the reason why not is kept.

    Raises:
        EdgekitError: it does not, and others are compared with it.
    """
    try:
        with MeasuringProcess(Subject(row.artifact, row.runtime, scenario, threads), TRIAL_S) as process:
            process.sample(3, TRIAL_S)
    except EdgekitError as error:
        if row.is_base:
            raise
        left_out.add(f"{row.name}, {threads} thread(s)", reason_of(error))
        return False
    return True


def describe(group: Group) -> list[dict[str, Any]]:
    """Returns what the table shows of each row; `ratio` is to edgekit's file of its precision in onnxruntime."""
    found = []
    for place, (row, measured) in enumerate(zip(group.rows, group.measurements, strict=True)):
        ratio, to_first = group.ratio(place, group.base_of(row.precision)), group.ratio(place, 0)
        found.append(
            {
                "precision": row.precision,
                "made_by": row.made_by,
                "format": row.written,
                "runtime": measured.runtime,
                "runtime_version": measured.runtime_version,
                "threads": group.threads,
                "from_model": _agreement(row.from_model),
                "from_float": _agreement(row.from_float),
                "p50_ms": measured.p50_ms,
                "p50_interval_ms": [measured.p50_interval_ms.low, measured.p50_interval_ms.high],
                "p95_ms": measured.p95_ms,
                "peak_rss_bytes": measured.peak_rss_bytes,
                "bytes": measured.model_bytes,
                "load_ms": measured.load_ms,
                "samples": len(measured.samples_ms),
                "ratio": ratio and ratio[0],
                "ratio_interval": ratio and ratio[1],
                "ratio_to_first": to_first and to_first[0],
                "ratio_to_first_interval": to_first and to_first[1],
            }
        )
    return found


def students_of(float_student: Artifact, quantized: Artifact | None, cache: Cache) -> dict[str, Artifact]:
    """Returns the student in every precision, int8 first: what edgekit ships is what all are compared with."""
    inputs = StageInputs(model=float_student)
    eight = quantized or cache.run("quantize", inputs, QuantizeConfig()).artifact
    four = cache.run("quantize", inputs, FOUR_BITS).artifact
    return dict(zip(PRECISIONS, (eight, four, float_student), strict=True))


def chosen_student(arguments: argparse.Namespace) -> tuple[Artifact, Artifact | None, Artifact]:
    """Returns the float student, its int8 codes where there are some, and the text, as the options name them."""
    if (arguments.student is None) != (arguments.data is None):
        raise SystemExit("--student and --data: found one of them, expected both or none.")
    if arguments.student is not None:
        return Artifact.open(arguments.student, kind="model"), None, Artifact.open(arguments.data, kind="data")
    models = models_of(arguments.build)
    return models.student, models.quantized, prepared_data(arguments.build)


def prepared_data(build: Path) -> Artifact:
    """Returns the prepared text of a finished build."""
    found = [Artifact.open(path) for path in sorted((build / "artifacts").glob("prepare-*")) if path.is_dir()]
    if len(found) != 1:
        raise SystemExit(
            f"{build}: found {len(found)} data artifacts, expected 1. Build it anew, in a fresh directory."
        )
    return found[0]


def make_rows(arguments: argparse.Namespace, left_out: LeftOut) -> tuple[list[Row], PeerFiles]:
    """Returns every row, edgekit's int8 file in onnxruntime first, and what the other tools said."""
    student, quantized, data = chosen_student(arguments)
    cache = Cache(arguments.work / "matrix", 0, tell_stages)
    check = QUICK_CHECK if arguments.quick else CheckConfig()
    formats = (BASE_FORMAT, *arguments.formats)
    maker = RowMaker(FloatReference(student, data, check.rows), cache, left_out, check, formats)
    by_channel = cache.run("quantize", StageInputs(model=student), BY_CHANNEL).artifact
    rows = maker.own_rows(students_of(student, quantized, cache), {"int4": by_channel})
    missing = [name for name in PRECISIONS if not any(row.is_base and row.precision == name for row in rows)]
    if missing:
        raise SystemExit(f"edgekit's own export is left out in {', '.join(missing)}: there is nothing to compare with.")
    named = zip(TOOLS, (arguments.optimum_python, arguments.olive_python), strict=True)
    pythons = {tool.name: path for tool, path in named if path is not None}
    peers = make_peer_files(student, arguments.work, pythons)
    for name, reason in peers.refused.items():
        left_out.add(name, reason)
    rows += maker.peer_rows(peers.files)
    return rows, peers


def _agreement(found: Agreement | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {"max_abs_diff": found.max_abs_diff, "label_agreement": found.label_agreement}


class _Progress:
    """An event sink that says now and then how far a measurement is."""

    def __init__(self, rows: int, threads: int, pairs: int) -> None:
        self._what = f"{rows} rows, {threads} thread(s), {pairs} sets"
        self._started = self._said = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._said > PROGRESS_S:
            self._said = now
            share = f" {event.completed} %" if event.unit == "%" else ""
            say(f"{self._what}: {event.text}{share}, {(now - self._started) / 60:.1f} minutes")


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = make_parser("One student in every format, precision, runtime and number of threads.")
    parser.add_argument("--pairs", type=int, default=5, help="fresh sets of processes")
    parser.add_argument("--quick", action="store_true", help="does everything run? Its figures are no results")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS), help="besides onnx")
    parser.add_argument("--student", type=Path, help="a float model artifact, instead of the build's")
    parser.add_argument("--data", type=Path, help="with --student: a data artifact")
    parser.add_argument("--optimum-python", type=Path, help="Python with optimum-onnx; made when not given")
    parser.add_argument("--olive-python", type=Path, help="Python with Olive; made when not given")
    return parser.parse_args(words)


def main() -> None:
    """Exports, compares and measures, and writes `runtime_matrix.json`."""
    arguments = parse_options()
    results = arguments.work / "results" if arguments.quick else arguments.results
    sampling = QUICK if arguments.quick else replace(SAMPLING, pairs=arguments.pairs)
    named = [arguments.student, arguments.data, arguments.optimum_python, arguments.olive_python]
    places = [arguments.work, arguments.build, *(path for path in named if path is not None)]
    left_out = LeftOut(hidden=[*(path.resolve() for path in places), *places, ROOT, Path(gettempdir()), Path.home()])
    rows, peers = make_rows(arguments, left_out)
    load = load_average()
    groups = [measure(rows, threads, sampling, left_out) for threads in THREADS]
    content = {
        "scenario": {"batch": 1, "length": LENGTH, "sets": [len(group.sets) for group in groups]},
        "load_average": load,
        "rows": [described for group in groups for described in describe(group)],
        "left_out": left_out.reasons,
        "peers": {"versions": peers.versions, "files": {file.made_by: file.how for file in peers.files}},
    }
    path = write_result(results, "runtime_matrix", content, PACKAGES)
    print(runtime_matrix_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
