"""One student in every format, precision, runtime and number of threads, all taking turns in one run.

    python benchmarks/runtime_matrix.py [--pairs 5]

The float32 student, its int8 codes and its 4-bit codes (groups of 32, float activations) are exported to every format
that holds classifiers. Each file is first checked against torch on validation text under each runtime that opens it;
then all are measured by edgekit's own harness with one thread and with two, 1 x 64 tokens, in fresh sets of processes.
LiteRT is not among the formats yet: see `latency_against_peers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import Models, models_of
from measuring import make_parser, say, tell_stages, write_result
from tables import runtime_matrix_table

from edgekit.artifact import Artifact
from edgekit.benchmarking.machine import load_average
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.benchmarking.sweep import measure_in_turn
from edgekit.cache import Cache
from edgekit.contract import StageInputs
from edgekit.events import Event
from edgekit.exporters.check_stage import CheckConfig
from edgekit.exporters.parity import read_parity
from edgekit.exporters.stage import ExportConfig
from edgekit.quantization.stage import QuantizeConfig
from edgekit.results import Parity, Sweep
from edgekit.runtimes.protocol import Runtime, available_runtimes_for

LENGTH = 64
THREADS = (1, 2)
PACKAGES = ("onnxruntime", "openvino", "torch", "transformers", "numpy")
FORMATS = (
    ("onnx", ExportConfig()),
    ("onnx, standard operators", ExportConfig(dialect="standard")),
    ("ort", ExportConfig(format="ort")),
    ("openvino", ExportConfig(format="openvino")),
)
FOUR_BITS = QuantizeConfig(bits=4, group_size=32, activations="float")


@dataclass(frozen=True)
class Row:
    """One file in one runtime."""

    precision: str
    written: str
    """The format."""
    artifact: Artifact
    runtime: Runtime
    parity: Parity | None
    """None for torch, which is what the others are compared with."""


def make_rows(models: Models, data: Artifact, cache: Cache) -> list[Row]:
    """Returns every file that passed its check, in each runtime that opens it; the one that edgekit ships first."""
    four = cache.run("quantize", StageInputs(model=models.student), FOUR_BITS).artifact
    rows = []
    for precision, model in (("int8", models.quantized), ("int4", four), ("float32", models.student)):
        for written, config in FORMATS:
            export = cache.run("export", StageInputs(model=model), config).artifact
            for runtime in available_runtimes_for(export.kind):
                inputs = StageInputs(model=export, reference=model, data=data)
                checked = cache.run("check", inputs, CheckConfig(runtime=runtime.name)).artifact
                parity = read_parity(checked)
                if isinstance(parity, Parity) and parity.passed:
                    rows.append(Row(precision, written, export, runtime, parity))
                else:
                    say(f"left out: {precision}, {written} in {runtime.name}: {' '.join(parity.failures)}")
        rows += [Row(precision, "torch", model, runtime, None) for runtime in available_runtimes_for("model")]
    return rows


def measure(rows: list[Row], pairs: int) -> Sweep:
    """Returns all rows with every number of threads, measured in turn."""
    scenario = random_scenario(rows[0].artifact, 1, LENGTH, seed=0)
    subjects = [Subject(row.artifact, row.runtime, scenario, threads) for threads in THREADS for row in rows]
    names = [f"{row.precision}, {row.written}, {row.runtime.name}, {n}T" for n in THREADS for row in rows]
    return measure_in_turn(subjects, names, Sampling(pairs=pairs), seed=0, events=_tell)


def describe(rows: list[Row], sweep: Sweep) -> list[dict[str, Any]]:
    """Returns what the table shows of each row and number of threads; ratios are to the first."""
    ratios = {ratio.measurement: ratio for ratio in sweep.ratios}
    found = []
    for place, measured in enumerate(sweep.measurements):
        row, ratio = rows[place % len(rows)], ratios.get(place)
        found.append(
            {
                "precision": row.precision,
                "format": row.written,
                "runtime": measured.runtime,
                "runtime_version": measured.runtime_version,
                "threads": measured.threads,
                "bytes": measured.model_bytes,
                "max_abs_diff": row.parity and row.parity.max_abs_diff,
                "label_agreement": row.parity and row.parity.label_agreement,
                "p50_ms": measured.p50_ms,
                "p50_interval_ms": [measured.p50_interval_ms.low, measured.p50_interval_ms.high],
                "p95_ms": measured.p95_ms,
                "peak_rss_bytes": measured.peak_rss_bytes,
                "load_ms": measured.load_ms,
                "samples": len(measured.samples_ms),
                "ratio": 1.0 if ratio is None else ratio.ratio_p50,
                "ratio_interval": None if ratio is None else [ratio.ratio_interval.low, ratio.ratio_interval.high],
            }
        )
    return found


def prepared_data(build: Path) -> Artifact:
    """Returns the prepared text of a finished build."""
    found = [Artifact.open(path) for path in sorted((build / "artifacts").glob("prepare-*")) if path.is_dir()]
    if len(found) != 1:
        raise SystemExit(
            f"{build}: found {len(found)} data artifacts, expected 1. Build it anew, in a fresh directory."
        )
    return found[0]


def _tell(event: Event) -> None:
    if event.text == "taking turns":
        say(f"set {event.completed} of {event.total}")


def main() -> None:
    """Exports, checks and measures, and writes `runtime_matrix.json`."""
    parser = make_parser("One student in every format, precision, runtime and number of threads.")
    parser.add_argument("--pairs", type=int, default=5, help="fresh sets of processes")
    arguments = parser.parse_args()
    models = models_of(arguments.build)
    cache = Cache(arguments.work / "matrix", 0, tell_stages)
    rows = make_rows(models, prepared_data(arguments.build), cache)
    load = load_average()
    sweep = measure(rows, arguments.pairs)
    content = {
        "scenario": {"batch": 1, "length": LENGTH, "rounds": sweep.rounds, "sets": sweep.sets},
        "load_average": load,
        "rows": describe(rows, sweep),
    }
    path = write_result(arguments.results, "runtime_matrix", content, PACKAGES)
    print(runtime_matrix_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
