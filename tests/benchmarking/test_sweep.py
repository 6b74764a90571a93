"""Classifiers, runtimes and numbers of threads that take turns, on real processes; no time is asserted."""

from __future__ import annotations

import json
import os

import pytest

from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.result_files import read_comparison, read_measurement, read_sweep
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.benchmarking.sweep import measure_in_turn
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import UsageError
from edgekit.events import ignore
from edgekit.runtimes.protocol import available_runtimes_for
from tests.benchmarking import fakes
from tests.runtimes.tiny import tiny_onnx_artifact

QUICK = {"min_samples": 5, "min_seconds": 0.05, "length": 8, "pairs": 5}
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("onnx") / "onnx")


def test_all_are_compared_with_the_first_on_the_same_rounds(onnx):
    """On clocks that only the sessions move: 10, 30 and 10 ms a call."""
    scenario = random_scenario(onnx, 2, 8, seed=0)
    subjects = [Subject(onnx, runtime, scenario) for runtime in (fakes.Steady(), fakes.Thrice(), fakes.Steady())]
    sampling = Sampling(min_samples=30, min_seconds=3.0, pairs=5)
    found = measure_in_turn(subjects, ["one", "three", "as one"], sampling, seed=0, events=ignore)
    assert found.names == ["one", "three", "as one"]
    assert found.sets == 5
    assert found.rounds >= 12
    assert [ratio.measurement for ratio in found.ratios] == [1, 2]
    assert [ratio.ratio_p50 for ratio in found.ratios] == pytest.approx([3.0, 1.0], rel=0.01)
    assert [ratio.verdict for ratio in found.ratios] == ["better", "no difference"]
    for measured, call_ms in zip(found.measurements, (10, 30, 10), strict=True):
        assert measured.p50_ms == pytest.approx(call_ms, rel=0.01)
        assert len(measured.samples_ms) >= 30
        assert sum(measured.samples_ms) >= 3000


def test_more_sets_follow_until_the_limit_of_the_first_is_decided(onnx):
    scenario = random_scenario(onnx, 2, 8, seed=0)
    subjects = [Subject(onnx, runtime, scenario) for runtime in (fakes.Steady(), fakes.Thrice())]
    sampling = Sampling(min_samples=10, min_seconds=0.1, pairs=5, decide_p95_ms=1000.0, max_seconds=60)
    found = measure_in_turn(subjects, ["one", "three"], sampling, seed=0, events=ignore)
    assert len(found.measurements[0].samples_ms) >= 104  # 0.95 ** 104 < 0.005: what 99 % confidence needs


def test_two_artifacts_of_one_name_are_told_apart(onnx, tmp_path):
    other = tiny_onnx_artifact(tmp_path / "onnx")
    config = BenchConfig(**QUICK, runtime="onnxruntime", sweep_threads=[1])
    found = read_sweep(bench(StageInputs(model=onnx, reference=other), config, StageContext(tmp_path / "out")))
    assert found.names == [f"{onnx.path}, onnxruntime, 1T", f"{other.path}, onnxruntime, 1T"]


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_the_stage_measures_every_runtime_with_every_number_of_threads(onnx, tmp_path):
    pytest.importorskip("openvino")
    config = BenchConfig(**QUICK, runtime="openvino", sweep_runtimes=["onnxruntime"], sweep_threads=[2])
    made = bench(StageInputs(model=onnx, reference=onnx), config, StageContext(tmp_path / "out"))
    found = read_sweep(made)
    assert found.names == [
        "onnx, openvino, 1T",
        "onnx, openvino, 2T",
        "onnx, onnxruntime, 1T",
        "onnx, onnxruntime, 2T",
        "onnx, openvino, 1T",
        "onnx, openvino, 2T",
    ]
    assert [(each.runtime, each.threads) for each in found.measurements[:3]] == [
        ("openvino", 1),
        ("openvino", 2),
        ("onnxruntime", 1),
    ]
    assert [len(each.pinned_cores) for each in found.measurements[:2]] == [1, 2]
    assert read_measurement(made) == found.measurements[0]
    assert read_comparison(made) is None


def test_the_command_finds_every_runtime_at_hand_and_shows_a_row_for_each(onnx, tmp_path, capsys):
    words = [str(onnx.path), "--all-runtimes", "--min-samples", "5", "--min-seconds", "0.05", "--pairs", "5"]
    names = [runtime.name for runtime in available_runtimes_for("onnx")]
    assert names[0] == "onnxruntime"
    assert run(["bench", *words, "--length", "8", "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    if len(names) > 1:
        assert [each["runtime"] for each in line["in_turn"]["measurements"]] == names
    assert run(["bench", *words, "--length", "8"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}, 1T" in shown for name in names) or len(names) == 1


def test_names_and_all_runtimes_exclude_each_other(onnx, capsys):
    assert run(["bench", str(onnx.path), "--all-runtimes", "--runtime", "onnxruntime"]) == 2
    assert "found --runtime and --all-runtimes, expected one of them" in capsys.readouterr().err


def test_a_runtime_that_opens_other_formats_is_refused_before_anything_runs(onnx, tmp_path):
    config = BenchConfig(**QUICK, sweep_runtimes=["torch"])
    with pytest.raises(UsageError, match="the runtime 'torch' opens model artifacts, found one of kind 'onnx'"):
        bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
