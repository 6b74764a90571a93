"""Gates: only clear evidence passes or fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.benchmarking.budget import check_budget, host_matches, host_mismatch
from edgekit.target import Budget, load_target
from tests.benchmarking.examples import LAPTOP, measurement, quality, steady

PI = LAPTOP.model_copy(
    update={
        "architecture": "aarch64",
        "cpu_features": ["asimd", "asimddp", "asimdhp"],
        "cpu": "ARM part 0xd0b",
        "device": "Raspberry Pi 5 Model B Rev 1.0",
    }
)


def judge(budget: Budget, *, size=8_000_000, measured=None, judged=None, on_target=True):
    result = check_budget(budget, file_bytes=size, measurement=measured, quality=judged, measured_on_target=on_target)
    return result, {check.name: check for check in result.checks}


def test_an_empty_budget_is_met_and_checks_nothing():
    result, checks = judge(Budget())
    assert result.met
    assert not checks


def test_everything_within_its_limit_is_met():
    budget = Budget(file_bytes=9_000_000, peak_memory_bytes=150_000_000, p95_ms=20, quality_drop=0.03)
    result, checks = judge(budget, measured=measurement(steady(10.0)), judged=quality(-0.01, -0.02, 0.0))
    assert result.met
    assert [check.status for check in checks.values()] == ["met"] * 4
    assert checks["p95_ms"].interval is not None
    assert "Some Laptop CPU" in checks["p95_ms"].explanation


@pytest.mark.parametrize(("size", "status"), [(9_000_000, "met"), (9_000_001, "missed")])
def test_the_limit_itself_is_allowed(size, status):
    result, checks = judge(Budget(file_bytes=9_000_000), size=size)
    assert checks["file_bytes"].status == status
    assert result.met is (status == "met")


def test_too_much_memory_is_missed():
    _, checks = judge(Budget(peak_memory_bytes=99_999_999), measured=measurement(steady(10.0)))
    assert checks["peak_memory_bytes"].status == "missed"
    assert "100.00 MB" in checks["peak_memory_bytes"].explanation


def test_memory_that_the_system_does_not_tell_is_inconclusive():
    result, checks = judge(Budget(peak_memory_bytes=1), measured=measurement(steady(10.0), peak_rss_bytes=0))
    assert checks["peak_memory_bytes"].status == "inconclusive"
    assert not result.met


@pytest.mark.parametrize(("limit", "status"), [(20.0, "met"), (5.0, "missed"), (10.34, "inconclusive")])
def test_latency_is_decided_by_the_whole_interval(limit, status):
    measured = measurement(steady(10.0))
    assert measured.p95_interval_ms.low < 10.34 < measured.p95_interval_ms.high
    result, checks = judge(Budget(p95_ms=limit), measured=measured)
    assert checks["p95_ms"].status == status
    assert result.met is (status == "met")


def test_few_samples_cannot_show_that_a_p95_is_met_but_can_show_that_it_is_missed():
    few = measurement(steady(10.0, count=40))
    _, checks = judge(Budget(p95_ms=1000), measured=few)
    assert checks["p95_ms"].status == "inconclusive"
    assert "72 needed" in checks["p95_ms"].explanation
    _, checks = judge(Budget(p95_ms=1), measured=few)
    assert checks["p95_ms"].status == "missed"


@pytest.mark.parametrize(
    ("change", "low", "high", "status"),
    [
        (-0.01, -0.02, 0.0, "met"),
        (-0.01, -0.03, 0.01, "met"),
        (-0.01, -0.031, 0.01, "inconclusive"),
        (-0.05, -0.08, -0.031, "missed"),
        (0.02, 0.01, 0.03, "met"),
    ],
)
def test_quality_is_decided_by_the_whole_paired_interval(change, low, high, status):
    _, checks = judge(Budget(quality_drop=0.03), judged=quality(change, low, high))
    check = checks["quality_drop"]
    assert check.status == status
    assert check.value == pytest.approx(-change)
    assert (check.interval.low, check.interval.high) == (-high, -low)


def test_quality_without_a_teacher_is_inconclusive():
    for judged in (None, quality(None)):
        result, checks = judge(Budget(quality_drop=0.03), judged=judged)
        assert checks["quality_drop"].status == "inconclusive"
        assert not result.met


def test_elsewhere_nothing_of_the_device_is_claimed():
    """A laptop's latency is never shown as a phone's: no value, no interval, whatever was measured."""
    for latency in (0.001, 10_000.0):
        budget = Budget(file_bytes=9_000_000, peak_memory_bytes=1, p95_ms=5)
        result, checks = judge(budget, measured=measurement(steady(latency)), on_target=False)
        for name in ("peak_memory_bytes", "p95_ms"):
            assert checks[name].status == "not-measured"
            assert checks[name].value is None
            assert checks[name].interval is None
        assert result.met  # the size was met; the rest is neither met nor missed


def test_nothing_measured_on_the_target_is_inconclusive():
    result, checks = judge(Budget(peak_memory_bytes=1, p95_ms=5))
    assert {check.status for check in checks.values()} == {"inconclusive"}
    assert not result.met


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.integers(80, 200))
def test_a_looser_limit_never_turns_met_into_missed(limit, looser, count):
    measured = measurement(steady(10.0, count))
    order = {"missed": 0, "inconclusive": 1, "met": 2}
    low, high = sorted((limit, looser))
    _, strict = judge(Budget(p95_ms=low), measured=measured)
    _, loose = judge(Budget(p95_ms=high), measured=measured)
    assert order[strict["p95_ms"].status] <= order[loose["p95_ms"].status]


def test_a_laptop_stands_for_laptops_and_for_nothing_else():
    assert host_matches(load_target("laptop-x86"), LAPTOP)
    assert host_mismatch(load_target("pixel-8"), LAPTOP) == "the architecture is x86_64, not aarch64"
    old = LAPTOP.model_copy(update={"cpu_features": ["sse4_2"]})
    assert "lacks avx2" in host_mismatch(load_target("laptop-x86"), old)


def test_a_board_is_recognized_by_its_name_not_by_its_architecture():
    assert host_matches(load_target("raspberry-pi-5"), PI)
    other = PI.model_copy(update={"device": "Orange Pi 5"})
    assert "Orange Pi 5, not a Raspberry Pi 5" in host_mismatch(load_target("raspberry-pi-5"), other)
    assert not host_matches(load_target("pixel-8"), PI)
