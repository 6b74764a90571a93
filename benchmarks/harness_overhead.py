"""What edgekit's harness adds to a call: an empty model, against onnxruntime's own time of the very same calls.

    python benchmarks/harness_overhead.py [--processes 5] [--calls 2000]

The model returns its input. Each process is one of the harness's, with onnxruntime's profiler on: its `model_run` is
the runtime's own time of a call, in whole microseconds; the harness's sample of that call is what edgekit would report.
The difference holds Python's call into the runtime, the look-up of inputs and outputs, and what the profiler adds.
Without the profiler the harness's time of the empty model is given as well: a bound, whatever the runtime says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import make_parser, say, write_result
from profiled_runtime import PREFIX, ProfiledOnnxRuntime
from tables import overhead_table

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.statistics import mean_interval
from edgekit.runtimes.onnxruntime_runtime import OnnxRuntime

LIMIT_US = 20.0
LENGTH, VOCABULARY, OPSET = 64, 1000, 21
WARMUP_CALLS = 500
TIMEOUT_S = 120.0


def write_empty_model(out: Path) -> Artifact:
    """Publishes an `onnx` artifact whose graph hands its input on."""
    import onnx
    from onnx import TensorProto, helper

    ids, same = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "logits")
    )
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "empty", [ids], [same])
    with publish(out, kind="onnx", lineage=Lineage(stage="source")) as directory:
        (directory / "onnx").mkdir()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.save(model, directory / "onnx" / "model.onnx")
        (directory / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
        task = {"task": "text-classification", "labels": ["a", "b"], "max_length": LENGTH}
        (directory / "task.json").write_text(json.dumps(task))
    return Artifact.open(out)


def sample(model: Artifact, runtime: OnnxRuntime, calls: int) -> list[float]:
    """Returns the harness's times of `calls` calls in a fresh process, after the warm-up, microseconds."""
    subject = Subject(model, runtime, random_scenario(model, 1, LENGTH, seed=0))
    with MeasuringProcess(subject, TIMEOUT_S) as process:
        process.sample(WARMUP_CALLS, TIMEOUT_S)
        return [duration / 1e3 for duration in process.sample(calls, TIMEOUT_S)]


def profiled_calls(model: Artifact, calls: int) -> list[float]:
    """Returns the runtime's own times of the last `calls` calls, microseconds, and removes its profile."""
    (file,) = model.path.parent.glob(f"{PREFIX}*.json")
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return [float(event["dur"]) for event in events if event["name"] == "model_run"][-calls:]


def measure_process(model: Artifact, calls: int) -> dict[str, float]:
    """Returns the medians of one pair of processes, microseconds."""
    harness = sample(model, ProfiledOnnxRuntime(), calls)
    runtime = profiled_calls(model, calls)
    if len(runtime) != len(harness):
        raise SystemExit(f"the profile holds {len(runtime)} calls, expected {len(harness)}: was the process killed?")
    return {
        "harness_us": float(np.median(harness)),
        "runtime_us": float(np.median(runtime)),
        "above_us": float(np.median(harness) - np.median(runtime)),
        "without_profiler_us": float(np.median(sample(model, OnnxRuntime(), calls))),
    }


def main() -> None:
    """Measures and writes `harness_overhead.json`."""
    parser = make_parser("What the harness adds to a call.")
    parser.add_argument("--processes", type=int, default=5, help="fresh pairs of processes")
    parser.add_argument("--calls", type=int, default=2000, help="calls in each")
    arguments = parser.parse_args()
    place = arguments.work / "overhead" / "empty"
    for stale in place.parent.glob(f"{PREFIX}*.json"):
        stale.unlink()
    model = Artifact.open(place) if place.is_dir() else write_empty_model(place)
    found = [measure_process(model, arguments.calls) for _ in range(arguments.processes)]
    above = [each["above_us"] for each in found]
    interval = mean_interval(above, seed=0)
    content: dict[str, Any] = {
        "limit_us": LIMIT_US,
        "calls": arguments.calls,
        "above_us": float(np.mean(above)),
        "above_interval_us": [interval.low, interval.high],
        "processes": found,
    }
    path: Path = write_result(arguments.results, "harness_overhead", content, ("onnxruntime", "numpy"))
    print(overhead_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
