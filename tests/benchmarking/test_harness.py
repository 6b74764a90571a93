"""Measuring and comparing, on real processes; no time is asserted, only what holds on any machine."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from edgekit.benchmarking.harness import compare, measure
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.benchmarking.turns import MIN_ROUNDS, is_decided
from edgekit.errors import UsageError
from edgekit.events import ignore
from edgekit.runtimes.protocol import get_runtime, model_bytes
from tests.benchmarking import fakes
from tests.runtimes.tiny import tiny_onnx_artifact

SHORT = Sampling(min_samples=30, min_seconds=0.02, max_seconds=0.5, max_warmup_s=0.3)  # not thinned out

QUICK = Sampling(min_samples=30, min_seconds=0.5, pairs=5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


def subject(tiny, runtime=None, threads=1) -> Subject:
    return Subject(tiny, runtime or get_runtime("onnxruntime"), random_scenario(tiny, 2, 8, seed=0), threads)


def test_a_measurement_has_all_that_an_auditor_needs(tiny):
    told = []
    found = measure(subject(tiny), SHORT, told.append)
    assert len(found.samples_ms) >= 30
    assert sum(found.samples_ms) >= 20
    assert (found.runtime, found.threads, found.batch, found.length) == ("onnxruntime", 1, 2, 8)
    assert found.p50_ms <= found.p90_ms <= found.p95_ms <= found.p99_ms <= max(found.samples_ms)
    assert found.p50_ms == pytest.approx(np.quantile(found.samples_ms, 0.5))
    assert found.p95_interval_ms.low <= found.p95_ms <= found.p95_interval_ms.high
    assert found.rows_per_s == pytest.approx(2 * len(found.samples_ms) / sum(found.samples_ms) * 1e3)
    assert found.warmup_runs >= 20
    assert 0 < found.baseline_rss_bytes < found.library_rss_bytes < found.peak_rss_bytes
    assert found.rss_anonymous_bytes > 0
    assert found.rss_file_bytes > 0
    assert found.model_digest == tiny.digest
    assert found.model_bytes == model_bytes(tiny)
    assert set(found.pinned_cores) <= os.sched_getaffinity(0)
    assert found.machine.cpu
    assert {event.text for event in told} == {"warming up", "sampling"}
    assert told[-1].completed == 100


def test_a_comparison_gives_the_ratio(tiny):
    """On clocks that only the sessions move: 10 and 30 ms a call."""
    pair = subject(tiny, fakes.Steady()), subject(tiny, fakes.Thrice())
    sampling = Sampling(min_samples=30, min_seconds=3.0)
    found = compare(*pair, sampling, seed=0, events=ignore)
    assert found.rounds >= MIN_ROUNDS
    assert found.ratio_p50 == pytest.approx(3.0, rel=0.01)
    assert found.ratio_interval.low == pytest.approx(3.0, rel=0.01)
    assert found.ratio_interval.high == pytest.approx(3.0, rel=0.01)
    for measured, call_ms in ((found.first, 10), (found.second, 30)):
        assert measured.p50_ms == pytest.approx(call_ms, rel=0.01)
        assert len(measured.samples_ms) >= 30
        assert sum(measured.samples_ms) >= 3000
    assert found.verdict == "better"
    assert len(found.pair_ratios) == 8
    back = compare(*reversed(pair), sampling, seed=0, events=ignore)
    assert back.ratio_p50 == pytest.approx(1 / 3, rel=0.01)
    assert back.verdict == "worse"


def test_a_model_against_its_equal_makes_no_difference(tiny):
    found = compare(subject(tiny, fakes.Steady()), subject(tiny, fakes.Steady()), QUICK, seed=0, events=ignore)
    assert found.verdict == "no difference"
    assert len(found.pair_ratios) == 5


def test_pairs_follow_until_the_interval_is_as_narrow_as_asked_or_the_time_is_over(tiny):
    """Every process of `Layout` has a speed of its own, so that more rounds of a pair would tell nothing."""
    pair = subject(tiny, fakes.Layout()), subject(tiny, fakes.Layout())
    width = 0.01  # five pairs of speeds between 10 and 12 ms are never that close
    narrow = compare(*pair, replace(QUICK, interval_width=width, max_seconds=4), seed=0, events=ignore)
    assert len(narrow.pair_ratios) > 5
    over = min(sum(each.samples_ms) for each in (narrow.first, narrow.second)) >= 4000
    assert over or narrow.ratio_interval.high - narrow.ratio_interval.low <= width * narrow.ratio_p50


def test_sampling_goes_on_until_the_interval_of_p50_is_narrow(tiny):
    restless = subject(tiny, fakes.Wavering())
    least = measure(restless, Sampling(min_samples=30, min_seconds=0.3), ignore)
    narrow = measure(restless, Sampling(min_samples=30, min_seconds=0.3, interval_width=0.01, max_seconds=60), ignore)
    assert least.p50_interval_ms.high - least.p50_interval_ms.low > 0.01 * least.p50_ms
    assert narrow.p50_interval_ms.high - narrow.p50_interval_ms.low <= 0.0105 * narrow.p50_ms
    assert len(narrow.samples_ms) > len(least.samples_ms)


def test_outliers_are_kept_and_told(tiny):
    found = measure(subject(tiny, fakes.Hiccups()), Sampling(min_samples=100, min_seconds=1.0), ignore)
    assert max(found.samples_ms) == pytest.approx(50)
    assert found.outliers == sum(sample > 40 for sample in found.samples_ms) > 0
    assert found.mad_ms == pytest.approx(0.01, abs=0.002)


def test_sampling_begins_when_the_spread_has_settled(tiny):
    found = measure(subject(tiny, fakes.Cooling()), Sampling(min_seconds=1.0), ignore)
    assert found.settled
    assert 50 <= found.warmup_runs <= 70
    assert found.samples_ms == [10.0] * len(found.samples_ms)
    assert len(found.samples_ms) == 100
    assert found.rows_per_s == pytest.approx(200)


def test_a_spread_that_never_settles_is_told(tiny):
    found = measure(subject(tiny, fakes.Restless()), Sampling(min_seconds=1.0, max_warmup_s=2.0), ignore)
    assert not found.settled
    assert 130 <= found.warmup_runs <= 140  # 2 s of calls that take 15 ms on average, in windows of 10


def test_more_threads_than_cores_is_refused(tiny):
    with pytest.raises(UsageError, match="threads: found 1000, expected at most"):
        measure(subject(tiny, threads=1000), SHORT, ignore)


def test_a_limit_far_away_is_decided_at_once_and_one_within_the_noise_not():
    samples = (1e6 * np.exp(0.1 * np.random.default_rng(0).standard_normal(400))).astype(int).tolist()
    p95 = float(np.quantile(samples, 0.95))
    assert is_decided(samples, 2 * p95 / 1e6)
    assert is_decided(samples, p95 / 2e6)
    assert not is_decided(samples, p95 / 1e6)
    # Fewer samples than bound a p95 from above can show that it is missed, not that it is met.
    assert not is_decided(samples[:50], 2 * p95 / 1e6)
    assert is_decided(samples[:50], p95 / 2e6)


def test_sampling_goes_on_until_a_limit_is_decided(tiny):
    needs_many = Sampling(min_samples=30, min_seconds=0.3, decide_p95_ms=1000.0, max_seconds=60)
    found = measure(subject(tiny, fakes.Steady()), needs_many, ignore)
    assert 104 <= len(found.samples_ms) < 1000  # 0.95 ** 104 < 0.005: what 99 % confidence needs
    hopeless = Sampling(min_samples=30, min_seconds=0.3, decide_p95_ms=20.0, max_seconds=5)
    found = measure(subject(tiny, fakes.Restless()), hopeless, ignore)
    assert 5 <= sum(found.samples_ms) / 1e3 < 8  # p95 is the limit itself: it gives up
