"""Intervals: hand-computed, against scipy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from edgekit.benchmarking.statistics import (
    _share_interval,
    block_length,
    count_outliers,
    effective_samples,
    expanded_tail,
    has_settled,
    mean_interval,
    median_absolute_deviation,
    median_ratio,
    paired_change_interval,
    paired_half_width,
    quantile_interval,
    samples_needed,
    wilson_interval,
)

LATENCIES = st.lists(st.floats(0.1, 1000), min_size=2, max_size=200)


def latencies(count: int, correlation: float, generator: np.random.Generator) -> np.ndarray:
    """Returns lognormal samples (sigma 0.2) whose logarithms are an autoregressive series of that correlation."""
    noise = generator.standard_normal(count + 100)
    series = lfilter([math.sqrt(1 - correlation**2)], [1, -correlation], noise)
    return np.exp(0.2 * series[100:])


@pytest.mark.parametrize(
    ("count", "correlation", "quantile", "least"),
    [
        (100, 0.0, 0.5, 0.93),
        (100, 0.0, 0.95, 0.90),
        (400, 0.5, 0.5, 0.88),
        (400, 0.5, 0.95, 0.88),
        (1000, 0.8, 0.5, 0.87),
        (1000, 0.8, 0.95, 0.87),
    ],
)
def test_the_interval_covers_the_true_quantile(count, correlation, quantile, least):
    """Nominal 95 %. Over 200 series a true coverage of 0.93 has a standard error of 0.018."""
    generator = np.random.default_rng(1)
    true = math.exp(0.2 * stats.norm.ppf(quantile))
    found = [quantile_interval(latencies(count, correlation, generator), quantile) for _ in range(200)]
    assert np.mean([interval.low <= true <= interval.high for interval in found]) >= least


def test_ignoring_correlation_would_not_cover():
    """The control: the interval for independent samples fails where the block bootstrap does not."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        samples = latencies(400, 0.8, generator)
        low, high = _share_interval(200, 200, 400, 0.025)
        hits += np.quantile(samples, low) <= 1 <= np.quantile(samples, high)
    assert hits / 200 < 0.75


@given(LATENCIES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_the_interval_lies_within_the_samples_around_the_quantile(samples, quantile):
    interval = quantile_interval(samples, quantile)
    assert min(samples) <= interval.low <= np.quantile(samples, quantile) + 1e-9
    assert interval.low <= interval.high <= max(samples)


@given(LATENCIES, st.sampled_from([0.5, 0.95]))
@settings(max_examples=40, deadline=None)
def test_the_interval_scales_with_the_unit(samples, quantile):
    once, thrice = quantile_interval(samples, quantile), quantile_interval([3 * x for x in samples], quantile)
    assert thrice.low == pytest.approx(3 * once.low)
    assert thrice.high == pytest.approx(3 * once.high)


def test_constant_samples_have_an_interval_without_width():
    interval = quantile_interval([5.0] * 40, 0.95)
    assert (interval.low, interval.high) == (5.0, 5.0)


def test_shares_agree_with_scipys_beta_quantiles():
    low, high = _share_interval(45, 47, 100, 0.025)
    assert low == pytest.approx(stats.beta.ppf(0.025, 45, 56), abs=1e-9)
    assert high == pytest.approx(stats.beta.ppf(0.975, 48, 53), abs=1e-9)
    assert _share_interval(0, 10, 10, 0.025) == (0.0, 1.0)


def test_samples_needed_by_hand():
    # 0.95 ** 72 = 0.0249 <= 0.025 < 0.0262 = 0.95 ** 71
    assert samples_needed(0.95) == 72
    assert samples_needed(0.5) == 6


def test_correlated_samples_count_less():
    generator = np.random.default_rng(3)
    independent = effective_samples(latencies(2000, 0.0, generator), 0.5)
    correlated = effective_samples(latencies(2000, 0.8, generator), 0.5)
    assert independent > 1500
    # A median of an autoregressive series at 0.8 is worth about a fifth of its samples.
    assert 200 < correlated < 800


def test_block_length_grows_with_correlation_and_is_one_without():
    generator = np.random.default_rng(5)
    lengths = [
        np.mean([block_length(latencies(1000, correlation, generator)) for _ in range(20)])
        for correlation in (0.0, 0.5, 0.9)
    ]
    assert lengths[0] < 3
    assert lengths[0] < lengths[1] < lengths[2]
    assert block_length(np.ones(50)) == 1
    assert block_length(np.array([1.0, 2.0])) == 1


def test_expanded_tail_agrees_with_students_distribution():
    for blocks in (10, 20, 200):
        expected = stats.norm.cdf(-math.sqrt(blocks / (blocks - 1)) * stats.t.ppf(0.975, blocks - 1))
        assert expanded_tail(blocks, 0.95) == pytest.approx(expected, rel=0.05)
    assert expanded_tail(1e9, 0.95) == pytest.approx(0.025)


def test_the_ratio_is_the_median_and_its_interval_is_seeded():
    ratios = [1.9, 2.0, 2.1, 2.0, 5.0, 1.8, 2.2, 2.0, 2.1, 1.9, 2.0, 2.0]
    ratio, interval = median_ratio(ratios, seed=1)
    assert ratio == 2.0
    assert 1.8 <= interval.low <= 2.0 <= interval.high <= 2.2
    assert median_ratio(ratios, seed=1) == (ratio, interval)


def test_the_ratios_interval_covers():
    generator = np.random.default_rng(0)
    found = [median_ratio(np.exp(0.1 * generator.standard_normal(20)), seed=0)[1] for _ in range(200)]
    assert np.mean([interval.low <= 1 <= interval.high for interval in found]) >= 0.9


def test_the_means_interval_is_students_where_that_is_right():
    values = 10 + np.random.default_rng(3).standard_normal(40)
    found = mean_interval(values, seed=0)
    half = stats.t.ppf(0.975, 39) * np.std(values, ddof=1) / math.sqrt(40)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval([4.0] * 6, seed=0).low == mean_interval([4.0] * 6, seed=0).high == 4.0


def test_the_means_interval_covers_with_six_runs():
    generator = np.random.default_rng(0)
    found = [mean_interval(10 + generator.standard_normal(6), seed=0) for _ in range(200)]
    assert np.mean([interval.low <= 10 <= interval.high for interval in found]) >= 0.89


SETTLING = {"window": 5, "spread": 0.05, "drift": 0.03}


@pytest.mark.parametrize(
    ("samples", "settled"),
    [
        ([10.0] * 9, False),
        ([10.0] * 10, True),
        ([20.0] * 5 + [10.0] * 5, False),  # calm, but at another level
        ([10.0] * 9 + [90.0], True),  # one preempted call
        ([10.0] * 5 + [8.0, 12.0, 8.0, 12.0, 10.0], False),  # spread
        ([30.0, 20.0, 15.0, 13.0, 12.0, 11.5, 11.2, 11.0, 10.9, 10.8], False),  # a fall that goes on
    ],
)
def test_settling(samples, settled):
    assert has_settled(samples, **SETTLING) is settled


def test_wilson_interval_by_hand():
    # Brown, Cai and DasGupta (2001): 8 of 10 gives 0.490 to 0.943.
    interval = wilson_interval(8, 10)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.490, 0.943)
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(10, 10).high == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_agrees_with_scipy(counts):
    successes, trials = counts
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    interval = wilson_interval(successes, trials)
    assert interval.low == pytest.approx(expected.low, abs=1e-9)
    assert interval.high == pytest.approx(expected.high, abs=1e-9)


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hits of a model and of its reference on rows of these four kinds."""
    right = np.repeat([True, True, False, False], [both, gained, lost, neither])
    reference = np.repeat([True, False, True, False], [both, gained, lost, neither])
    return right, reference


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe (1998), method 10
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014)
    ],
)
def test_the_paired_interval_agrees_with_published_examples(counts, low, high):
    interval = paired_change_interval(*paired(*counts))
    assert interval.low == pytest.approx(low, abs=5e-4)
    assert interval.high == pytest.approx(high, abs=5e-4)


@pytest.mark.parametrize("counts", [(17, 0, 0, 3), (20, 0, 0, 0), (0, 0, 0, 20)])
def test_the_paired_interval_has_width_where_no_row_differs(counts):
    interval = paired_change_interval(*paired(*counts))
    # With none of 20 rows changed, a rate of up to 1 - 0.05 ** (1 / 20) = 14 % is still possible.
    assert interval.low < -0.13
    assert interval.high > 0.13


@pytest.mark.parametrize("rows", [20, 50, 200])
@pytest.mark.parametrize("shares", [(0.8, 0.05, 0.05, 0.1), (0.5, 0.1, 0.2, 0.2), (0.94, 0.01, 0.02, 0.03)])
def test_the_paired_interval_covers_at_small_sizes(rows, shares):
    drawn = np.random.default_rng(0).multinomial(rows, shares, size=1500)
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    covered = 0
    for counts, count in zip(kinds, times, strict=True):
        interval = paired_change_interval(*paired(*counts))
        covered += int(count) * (interval.low <= shares[1] - shares[2] <= interval.high)
    assert covered / len(drawn) > 0.93  # 0.95 less four standard errors


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_swapping_the_models_mirrors_the_paired_interval(counts):
    right, reference = paired(*counts)
    interval, mirrored = paired_change_interval(right, reference), paired_change_interval(reference, right)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))
    assert interval.low <= right.mean() - reference.mean() <= interval.high


def test_the_paired_interval_agrees_with_resampled_rows():
    generator = np.random.default_rng(2)
    right, reference = generator.random(300) < 0.8, generator.random(300) < 0.85
    rows = generator.integers(0, 300, size=(4000, 300))
    changes = right[rows].mean(axis=1) - reference[rows].mean(axis=1)
    interval = paired_change_interval(right, reference)
    assert interval.low == pytest.approx(np.quantile(changes, 0.025), abs=0.01)
    assert interval.high == pytest.approx(np.quantile(changes, 0.975), abs=0.01)


def test_how_far_a_paired_interval_reaches_is_walds_for_many_rows_and_more_for_few():
    wald = 1.96 * math.sqrt(0.05 / 20_000)
    assert paired_half_width(20_000, differing=0.05, accuracy=0.9) == pytest.approx(wald, rel=0.02)
    assert paired_half_width(50, differing=0.05, accuracy=0.9) > 1.96 * math.sqrt(0.05 / 50)
    # no row differs: Wilson's interval of 45 in 50, 78.6 to 95.7 %, with the correlation that the correction leaves
    assert paired_half_width(50, differing=0.0, accuracy=0.9) == pytest.approx(0.0684, abs=5e-4)


def test_outliers_by_hand():
    samples = [9.0, 10.0, 10.0, 11.0, 12.0, 20.0]
    # the median is 10.5; the distances 1.5 0.5 0.5 0.5 1.5 9.5, their median 1.0: beyond 5.19 lies the 20 alone
    assert median_absolute_deviation(samples) == pytest.approx(1.0)
    assert count_outliers(samples) == 1
    assert count_outliers([10.5 - 5.2, *samples]) == 1  # the median is 10 there, and the reach 5.19
    assert count_outliers([5.0] * 10 + [50.0]) == 0  # no spread to compare with


def test_the_deviation_agrees_with_scipy():
    samples = latencies(500, 0.3, np.random.default_rng(2))
    assert median_absolute_deviation(samples) == pytest.approx(stats.median_abs_deviation(samples))


def test_rounds_that_resemble_their_neighbours_make_the_ratio_less_sure():
    generator = np.random.default_rng(8)
    widths = []
    for correlation in (0.0, 0.8):
        found = [median_ratio(latencies(60, correlation, generator).tolist(), seed=seed)[1] for seed in range(20)]
        widths.append(np.mean([interval.high - interval.low for interval in found]))
    assert widths[1] > 1.4 * widths[0]
