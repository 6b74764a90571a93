"""Where the time of an ONNX file goes: onnxruntime's own profile, summed by operator."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact
from edgekit.benchmarking.scenario import Scenario
from edgekit.runtimes.onnxruntime_runtime import PROVIDER, session_options
from edgekit.runtimes.protocol import SessionConfig, model_file, select_inputs

WARMUP_RUNS = 20
RUNS = 200


def profile_operators(model: Artifact, scenario: Scenario) -> dict[str, float]:
    """Returns operator to ms a call of the model, the largest first; the profiler's own cost is in them."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as directory:
        options = session_options(SessionConfig(threads=1))
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory) / "profile")
        session = onnxruntime.InferenceSession(str(model_file(model)), options, providers=[PROVIDER])
        names = [value.name for value in session.get_inputs()]
        for run in range(WARMUP_RUNS + RUNS):
            input_ids = np.array(scenario.input_ids[run % len(scenario.input_ids)], dtype=np.int64)
            session.run(None, select_inputs(names, input_ids, np.ones_like(input_ids)))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _sum_by_operator(events)


def _sum_by_operator(events: list[dict[str, object]]) -> dict[str, float]:
    """Sums the kernels of the last `RUNS` runs, whose ends the profile marks by `model_run`."""
    starts = sorted(_number(event["ts"]) for event in events if event["name"] == "model_run")
    first = starts[-RUNS]
    totals: defaultdict[str, float] = defaultdict(float)
    for event in events:
        arguments = event.get("args")
        if not isinstance(arguments, dict) or not str(event["name"]).endswith("_kernel_time"):
            continue
        if _number(event["ts"]) >= first:
            totals[arguments["op_name"]] += _number(event["dur"]) / 1e3 / RUNS
    return {name: round(totals[name], 4) for name in sorted(totals, key=lambda name: -totals[name])}


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
