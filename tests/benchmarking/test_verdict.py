"""Verdicts and ratios: by hand, against scipy, and by simulation on series made from a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarking.statistics import median_ratio, quantile_interval
from edgekit.benchmarking.verdict import independent_ratio_interval, judge, paired_ratio
from edgekit.results import Interval
from tests.benchmarking.test_statistics import latencies


def interval(low: float, high: float) -> Interval:
    return Interval(low=low, high=high)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.04, 1.20, "better"),
        (1.02, 1.20, "inconclusive"),  # a true ratio of 1.02 would not count
        (0.80, 0.96, "worse"),
        (0.80, 0.98, "inconclusive"),
        (0.98, 1.02, "no difference"),
        (1.01, 1.02, "no difference"),  # it excludes 1, by less than what counts
        (0.98, 1.04, "inconclusive"),
        (0.50, 2.00, "inconclusive"),
    ],
)
def test_the_verdict_says_where_the_whole_interval_lies(low, high, expected):
    assert judge(interval(low, high), 0.03) == expected


@given(st.floats(0.5, 2.0), st.floats(1.0, 1.5), st.floats(0.005, 0.5))
def test_swapping_the_two_swaps_the_verdict(low, factor, margin):
    opposite = {"better": "worse", "worse": "better"}
    found = judge(interval(low, low * factor), margin)
    swapped = judge(interval(1 / (low * factor), 1 / low), margin)
    if all(abs(end / edge - 1) > 1e-9 for end in (low, low * factor) for edge in (1 + margin, 1 / (1 + margin))):
        assert swapped == opposite.get(found, found)


def test_the_ratio_of_blocks_by_hand():
    ratio, found = paired_ratio([[1.0, 9.0, 2.0], [8.0], [4.0, 4.0]], seed=0)
    assert ratio == pytest.approx(4.0)  # the cube root of 2 * 8 * 4
    assert 2.0 <= found.low < 4.0 < found.high <= 8.0


def blocks_of(generator: np.random.Generator, true: float, pairs: int = 8, rounds: int = 4) -> list[list[float]]:
    """Returns ratios of rounds that share what a pair of processes has for itself: 1.5 %, beside 3 % a round."""
    own = 0.015 * generator.standard_normal(pairs)
    noise = 0.03 * generator.standard_normal((pairs, rounds))
    return (true * np.exp(own[:, None] + noise)).tolist()


def test_the_interval_over_pairs_covers_where_one_over_rounds_does_not():
    generator = np.random.default_rng(11)
    pairs_hit, rounds_hit = 0, 0
    for seed in range(300):
        blocks = blocks_of(generator, 1.0, rounds=12)
        _, found = paired_ratio(blocks, seed=seed)
        pairs_hit += found.low <= 1.0 <= found.high
        # the control: the rounds of one pair of processes, as if these were all that varies
        _, alone = median_ratio(blocks[0], seed=seed)
        rounds_hit += alone.low <= 1.0 <= alone.high
    assert pairs_hit / 300 >= 0.91
    assert rounds_hit / 300 < 0.85


def test_a_model_against_itself_is_never_better_or_worse_and_a_tenth_is_found():
    """The experiment of benchmarks/verdicts.py, on ratios made from a seed."""
    generator = np.random.default_rng(5)
    same = [judge(paired_ratio(blocks_of(generator, 1.0), seed=seed)[1], 0.03) for seed in range(40)]
    tenth = [judge(paired_ratio(blocks_of(generator, 1.1), seed=seed)[1], 0.03) for seed in range(40)]
    assert set(same) <= {"no difference", "inconclusive"}
    assert same.count("no difference") > 20
    assert tenth.count("better") > 36
    assert set(tenth) <= {"better", "inconclusive"}


def test_at_the_margin_itself_a_verdict_is_as_rare_as_stated():
    generator = np.random.default_rng(6)
    edge = [judge(paired_ratio(blocks_of(generator, 1.03), seed=seed)[1], 0.03) for seed in range(300)]
    # (1 - 0.95) / 2 each; the bootstrap over 8 pairs covers a little less than it says
    assert edge.count("better") / 300 <= 0.06
    assert edge.count("no difference") / 300 <= 0.06


def test_the_ratio_of_two_runs_by_hand():
    # of one exactly known value the distances are the other's own
    found = independent_ratio_interval(2.0, interval(1.8, 2.5), 1.0, interval(1.0, 1.0))
    assert (found.low, found.high) == (pytest.approx(1.8), pytest.approx(2.5))
    # ln 1.1 to either side of both: sqrt(2) ln 1.1 together
    both = independent_ratio_interval(1.0, interval(1 / 1.1, 1.1), 1.0, interval(1 / 1.1, 1.1))
    assert both.high == pytest.approx(1.1 ** math.sqrt(2))
    assert both.low == pytest.approx(1 / both.high)


def test_the_ratio_of_two_runs_covers():
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        old, new = latencies(400, 0.5, generator), 1.2 * latencies(400, 0.5, generator)
        medians = [float(np.median(values)) for values in (new, old)]
        found = independent_ratio_interval(
            medians[0], quantile_interval(new, 0.5), medians[1], quantile_interval(old, 0.5)
        )
        hits += found.low <= 1.2 <= found.high
    assert hits / 200 >= 0.90


@given(st.lists(st.floats(0.5, 2.0), min_size=5, max_size=12), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_ratio_lies_in_its_interval_which_lies_within_the_blocks(ratios, seed):
    ratio, found = paired_ratio([[each] for each in ratios], seed=seed)
    assert min(ratios) <= found.low * (1 + 1e-9)
    assert found.low <= ratio * (1 + 1e-9)
    assert ratio <= found.high * (1 + 1e-9)
    assert found.high <= max(ratios) * (1 + 1e-9)
