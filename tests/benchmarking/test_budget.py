"""Gates: only clear evidence passes or fails."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarking.budget import check_budget, host_matches, host_mismatch
from edgekit.benchmarking.statistics import wilson_interval
from edgekit.results import AnswersQuality, Interval, LanguageQuality
from edgekit.target import Budget, load_target
from tests.benchmarking.examples import LAPTOP, measurement, quality, steady
from tests.reporting.language_examples import generation

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
    assert "95.37 MiB" in checks["peak_memory_bytes"].explanation


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


@settings(deadline=None)
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


def language_quality(ratio, low=0.0, high=0.0):
    return LanguageQuality(
        perplexity=38.0,
        perplexity_interval=Interval(low=36, high=40),
        cross_entropy=3.64,
        accuracy=0.4,
        tokens=41_200,
        documents=120,
        perplexity_ratio=ratio,
        perplexity_ratio_interval=None if ratio is None else Interval(low=low, high=high),
    )


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(1.2, 1.4, "met"), (1.3, 1.5, "met"), (1.4, 1.51, "inconclusive"), (1.51, 1.6, "missed")],
)
def test_perplexity_is_decided_by_the_whole_paired_interval(low, high, status):
    result, checks = judge(Budget(perplexity_ratio=1.5), judged=language_quality((low + high) / 2, low, high))
    check = checks["perplexity_ratio"]
    assert check.status == status
    assert check.interval == Interval(low=low, high=high)
    assert "41,200 tokens" in check.explanation
    assert result.met is (status == "met")


@pytest.mark.parametrize(
    ("answered", "status"),
    [(8, "met"), (7, "met"), (6, "inconclusive"), (3, "inconclusive"), (1, "missed"), (0, "missed")],
)
def test_a_model_that_says_nothing_does_not_ship(answered, status):
    found = AnswersQuality(
        prompts=8,
        answered=answered / 8,
        answered_interval=wilson_interval(answered, 8),
        ended=0.5,
        repetition=0.1,
        max_tokens=48,
    )
    judged = language_quality(1.2, 1.1, 1.3).model_copy(update={"answers": found})
    result, checks = judge(Budget(answered=0.5), judged=judged)
    assert checks["answered"].status == status
    assert f"{answered / 8:.0%} of 8 prompts got an answer" in checks["answered"].explanation
    assert result.met is (status == "met")
    _, checks = judge(Budget(answered=0.5), judged=language_quality(1.2, 1.1, 1.3))
    assert checks["answered"].status == "inconclusive"
    assert "No prompt was asked" in checks["answered"].explanation


@pytest.mark.parametrize(
    ("limit", "status"),
    [(60.0, "met"), (64.0, "met"), (65.0, "inconclusive"), (66.0, "inconclusive"), (66.1, "missed")],
)
def test_decoding_must_be_at_least_as_fast_over_the_whole_interval(limit, status):
    depth = generation().deepest.model_copy(
        update={"decode_tokens_per_s": 65.0, "decode_tokens_per_s_interval": Interval(low=64, high=66)}
    )
    _, checks = judge(Budget(decode_tokens_per_s=limit), measured=generation(depths=[depth]))
    check = checks["decode_tokens_per_s"]
    assert check.status == status
    words = {
        "met": f"{limit:g} tokens/s asked for.",
        "missed": "asked for: too slow.",
        "inconclusive": "does not clear",
    }
    assert words[status] in check.explanation


def test_speed_is_judged_at_the_deepest_context():
    found = generation(contexts=(64, 2048))
    shallow, deep = (depth.first_token_ms for depth in found.depths)
    _, checks = judge(Budget(first_token_ms=(shallow + deep) / 2), measured=found)
    assert checks["first_token_ms"].status == "missed"
    assert "after 2,048" in checks["first_token_ms"].explanation
    _, checks = judge(Budget(first_token_ms=2 * deep), measured=found)
    assert checks["first_token_ms"].status == "met"
    assert checks["first_token_ms"].value == deep


def test_a_few_runs_cannot_show_that_the_first_token_is_in_time_but_can_show_that_it_is_late():
    depth = generation().deepest
    few = depth.model_copy(update={"first_token_samples_ms": depth.first_token_samples_ms[:3]})
    _, checks = judge(Budget(first_token_ms=1e6), measured=generation(depths=[few]))
    assert checks["first_token_ms"].status == "inconclusive"
    assert "6 needed" in checks["first_token_ms"].explanation
    _, checks = judge(Budget(first_token_ms=1), measured=generation(depths=[few]))
    assert checks["first_token_ms"].status == "missed"


def test_a_limit_of_another_kind_of_model_is_never_met():
    calls, written = measurement(steady(10.0)), generation()
    for budget, measured, judged in (
        (Budget(p95_ms=1e6), written, None),
        (Budget(first_token_ms=1e6), calls, None),
        (Budget(decode_tokens_per_s=1e-6), calls, None),
        (Budget(quality_drop=1), written, language_quality(1.0, 0.9, 1.1)),
        (Budget(perplexity_ratio=9), calls, quality(0.0, -0.01, 0.01)),
        (Budget(perplexity_ratio=9), written, language_quality(None)),
        (Budget(perplexity_ratio=9), written, None),
    ):
        result, checks = judge(budget, measured=measured, judged=judged)
        assert [check.status for check in checks.values()] == ["inconclusive"]
        assert not result.met


def test_a_phones_decode_speed_is_not_measured_on_a_laptop():
    budget = Budget(decode_tokens_per_s=1, first_token_ms=1e6, peak_memory_bytes=2**40)
    result, checks = judge(budget, measured=generation(), on_target=False)
    assert {check.status for check in checks.values()} == {"not-measured"}
    assert all(check.value is None for check in checks.values())
    assert result.met


@settings(deadline=None)
@given(st.floats(1, 200), st.floats(1, 200))
def test_asking_for_more_speed_never_turns_missed_into_met(limit, other):
    order = {"missed": 0, "inconclusive": 1, "met": 2}
    low, high = sorted((limit, other))
    found = generation(contexts=(512,))
    _, lenient = judge(Budget(decode_tokens_per_s=low), measured=found)
    _, strict = judge(Budget(decode_tokens_per_s=high), measured=found)
    assert order[strict["decode_tokens_per_s"].status] <= order[lenient["decode_tokens_per_s"].status]
