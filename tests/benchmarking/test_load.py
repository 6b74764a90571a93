"""Classifiers under load, on clocks that only the sessions move: what is found is what theory says."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from edgekit.benchmarking.load import BATCHES, Service, make_arrivals, run_offline, run_server, run_sustained
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.result_files import read_measurement
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.events import ignore
from edgekit.reporting.load import lines
from tests.benchmarking import fakes
from tests.runtimes.tiny import tiny_onnx_artifact


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("onnx") / "onnx")


def subject(onnx, runtime, batch=1) -> Subject:
    return Subject(onnx, runtime, random_scenario(onnx, batch, 8, seed=0))


def queue_of(arrivals_ns, service_ms):
    """Returns the latencies (ms) of one server that takes `service_ms` for each, by Lindley's recursion."""
    latencies, free = [], 0.0
    for arrival in np.array(arrivals_ns) / 1e6:
        free = max(free, arrival) + service_ms
        latencies.append(free - arrival)
    return np.array(latencies)


def test_arrivals_are_a_poisson_process():
    arrivals = make_arrivals(200.0, 20_000, seed=3)
    gaps = np.diff(arrivals) / 1e9
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.03)
    assert arrivals == make_arrivals(200.0, 20_000, seed=3) != make_arrivals(200.0, 20_000, seed=4)


def test_a_query_waits_for_those_before_it(onnx):
    arrivals = make_arrivals(50.0, 4000, seed=0)
    with MeasuringProcess(subject(onnx, fakes.Steady()), 60) as process:
        found = np.array(process.serve(arrivals, give_up_ns=10**12)) / 1e6
    expected = queue_of(arrivals, 10.01)
    assert np.abs(found - expected).max() < 0.5  # the ripple of a thousandth adds up while there is a queue
    assert found.mean() == pytest.approx(10 + 5, rel=0.1), "M/D/1: half a load of 50 % over the idle half"


def test_the_highest_rate_keeps_the_bound_and_the_next_one_does_not(onnx):
    found = run_server(subject(onnx, fakes.Steady()), Service(40.0, 0, 60), 10.0, ignore)
    assert found.rate_per_s is not None
    assert found.utilization == pytest.approx(found.rate_per_s / 100)
    assert 0.3 < found.utilization < 0.8
    for seed, trial in enumerate(found.trials):
        expected = np.quantile(queue_of(make_arrivals(trial.rate_per_s, trial.queries, seed), 10.01), 0.99)
        if trial.met is not None and trial.p99_ms < 500:
            assert trial.p99_ms == pytest.approx(expected, rel=0.1)
        assert trial.met is None or trial.met == (trial.p99_ms <= 40)
    met = [trial.rate_per_s for trial in found.trials if trial.met]
    not_met = [trial.rate_per_s for trial in found.trials if not trial.met]
    assert found.rate_per_s == max(met) < min(not_met)
    assert "queries/s with a p99 of at most 40.0 ms" in lines(found)[0]


def test_a_bound_below_one_call_is_met_at_no_rate(onnx):
    found = run_server(subject(onnx, fakes.Steady()), Service(5.0, 0, 60), 10.0, ignore)
    assert found.rate_per_s is None
    assert found.utilization is None
    assert len(found.trials) == 1
    assert "does not keep 5.00 ms at any rate" in lines(found)[0]


def test_a_queue_without_end_is_given_up(onnx):
    arrivals = make_arrivals(1000.0, 5000, seed=0)
    with MeasuringProcess(subject(onnx, fakes.Steady()), 60) as process:
        assert len(process.serve(arrivals, give_up_ns=200_000_000)) < 100


def test_offline_finds_the_batch_with_the_highest_throughput(onnx):
    made = []

    def make_scenario(batch):
        made.append(batch)
        return random_scenario(onnx, batch, 8, seed=0)

    found = run_offline(subject(onnx, fakes.Batched()), make_scenario, 60, ignore)
    assert made == [*BATCHES, *reversed(BATCHES)]
    rates = {each.batch: each.rows_per_s for each in found.batches}
    assert rates[1] == pytest.approx(1e3 / 6)
    assert rates[16] == pytest.approx(16e3 / 21)
    assert rates[64] == pytest.approx(64e3 / 197)
    assert found.best_batch == 16
    assert found.rows_per_s == rates[16]
    assert lines(found)[0] == "Offline: 762 rows/s in batches of 16."


def test_minutes_of_work_show_the_slowdown(onnx):
    found = run_sustained(subject(onnx, fakes.Heating()), 40.0, 60, ignore)
    assert len(found.windows) == pytest.approx(40, abs=2)
    assert found.slowdown == pytest.approx(1.5)
    assert found.worst_slowdown == pytest.approx(1.5)
    assert found.windows[0].p50_ms == pytest.approx(10)
    assert [window.start_s for window in found.windows] == sorted(window.start_s for window in found.windows)
    assert "the last quarter takes 1.50" in lines(found)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "server"}, "found no p99_bound_ms"),
        ({"p99_bound_ms": 5.0}, "scenario single-stream: found p99_bound_ms"),
        ({"scenario": "multi-stream"}, "expected the number of streams"),
        ({"scenario": "offline", "batch": 4}, "found a batch of 4, expected 1"),
        ({"scenario": "server", "p99_bound_ms": 5.0, "batch": 4}, "found a batch of 4, expected 1"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        BenchConfig(**settings)


def test_the_stage_keeps_what_was_found_beside_the_measurement(onnx, tmp_path, capsys):
    quick = {"min_samples": 5, "min_seconds": 0.05, "length": 8}
    config = BenchConfig(**quick, scenario="server", p99_bound_ms=1000.0)
    found = read_measurement(bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out")))
    assert found.p50_ms > 0
    assert found.under_load.scenario == "server"
    assert found.under_load.trials[0].met
    words = ["--min-samples", "5", "--min-seconds", "0.05", "--length", "8", "--scenario", "sustained"]
    assert run(["bench", str(onnx.path), *words, "--sustained-s", "2"]) == 0
    assert "Sustained for" in capsys.readouterr().out
