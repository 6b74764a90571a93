"""Estimates beside measurements of the same figure."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from edgekit.benchmarking.estimates import check_estimates, estimate_all
from edgekit.benchmarking.roofline import estimate_latency, estimate_peak_memory
from edgekit.target import load_target
from tests.benchmarking.examples import measurement, steady
from tests.reporting.language_examples import generation
from tests.runtimes.tiny import tiny_onnx_artifact


@dataclass(frozen=True)
class Shape:
    batch: int = 1
    length: int = 16
    threads: int = 1


def test_a_measurement_in_the_middle_of_the_range_has_ratio_1(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("laptop-x86")
    estimate = estimate_latency(artifact, target, Shape())
    middle_ms = (estimate.low * estimate.high) ** 0.5
    for factor, within in ((1.0, True), (2.0, True), (100.0, False), (0.01, False)):
        found = measurement([factor * middle_ms] * 100, peak_rss_bytes=50 * 2**20, library_rss_bytes=30 * 2**20)
        speed, memory = check_estimates(artifact, target, Shape(), found)
        assert speed.estimate == estimate
        assert (speed.ratio, speed.within) == (pytest.approx(factor), within)
        assert speed.measured == pytest.approx(factor * middle_ms)
        assert memory.measured == 20 * 2**20
        assert memory.within


def test_memory_is_estimated_without_a_look_at_the_measurement(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("laptop-x86")
    found = measurement(steady(1.0), peak_rss_bytes=400 * 2**20, library_rss_bytes=30 * 2**20)
    memory = check_estimates(artifact, target, Shape(), found)[1]
    assert memory.estimate == estimate_peak_memory(artifact, target)
    assert memory.estimate != estimate_all(artifact, target, Shape(), found)[1]
    assert not memory.within


def test_what_the_system_does_not_tell_is_not_compared(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("laptop-x86")
    found = measurement(steady(1.0), peak_rss_bytes=0)
    assert [check.estimate.unit for check in check_estimates(artifact, target, Shape(), found)] == ["ms"]


def test_writing_is_compared_at_the_deepest_context(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("laptop-x86")
    found = generation()
    check = check_estimates(artifact, target, Shape(), found)[0]
    most = target.memory_bandwidth_bytes_per_s.value / found.deepest.bytes_per_token
    assert check.estimate.high == pytest.approx(most)
    assert check.measured == found.deepest.decode_tokens_per_s
    assert check.within == (check.estimate.low <= check.measured <= check.estimate.high)
