"""How many times as fast one model is as another, and when that counts. Plain maths on samples' figures.

The verdict is about a ratio of speeds, above 1 where the judged model is faster. With an equivalence margin m:

    better          the interval lies wholly above 1 + m
    worse           it lies wholly below 1 / (1 + m)
    no difference   it lies wholly within 1 / (1 + m) to 1 + m
    inconclusive    it reaches over either end: sample longer, or on a quieter machine

With an interval of confidence c that covers as it says, a true ratio within the margin is called better or worse with
probability (1 - c) / 2 at most, and one beyond it is called no difference, or the opposite, no more often. It is the
test for equivalence by two one-sided tests (Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987) with its
mirror image, at level (1 - c) / 2 each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.benchmarking.statistics import CONFIDENCE, bootstrap_interval
from edgekit.results import Interval, Verdict

MARGIN = 0.03
"""Differences of speed up to this share do not count, of models that took turns in one run."""


def judge(ratio: Interval, margin: float) -> Verdict:
    """Returns the verdict on a ratio of speeds, above 1 where the judged model is faster; `margin` is above 0."""
    least, most = 1 / (1 + margin), 1 + margin
    if ratio.low > most:
        return "better"
    if ratio.high < least:
        return "worse"
    return "no difference" if least <= ratio.low and ratio.high <= most else "inconclusive"


def judge_difference(difference: Interval, margin: float) -> Verdict:
    """Returns the verdict on a difference, above 0 where the judged model is better; the same rule around 0."""
    if difference.low > margin:
        return "better"
    if difference.high < -margin:
        return "worse"
    return "no difference" if -margin <= difference.low and difference.high <= margin else "inconclusive"


def paired_ratio(
    blocks: Sequence[Sequence[float]], *, seed: int, confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """Returns the ratio that blocks of rounds tell, and its bootstrap interval; a block is drawn whole.

    A block holds the ratios of the rounds of one pair of processes. Rounds of a pair resemble each other, and a pair
    differs from the next as a whole (addresses, thus caches), so pairs and not rounds are independent: Kalibera and
    Jones, "Rigorous benchmarking in reasonable time", ISMM 2013, where they are the highest level of repetition. The
    ratio is the geometric mean of the blocks' medians, so that A / B is exactly the inverse of B / A.
    """
    logs = np.log([float(np.median(block)) for block in blocks])
    interval = bootstrap_interval(logs, np.mean, seed, confidence)
    ends = Interval(low=math.exp(interval.low), high=math.exp(interval.high), confidence=confidence)
    return math.exp(float(np.mean(logs))), ends


def independent_ratio_interval(value: float, of_value: Interval, base: float, of_base: Interval) -> Interval:
    """Returns the interval of value / base, both above 0, measured apart, from the interval of each.

    The method of variance estimates recovery (Zou and Donner, Statistics in Medicine 27, 2008, equation 7) on the
    logarithms: the distances of the ends from the estimates, which need not be symmetric, add up as squares.
    """
    center = math.log(value / base)
    below = math.hypot(math.log(value / of_value.low), math.log(of_base.high / base))
    above = math.hypot(math.log(of_value.high / value), math.log(base / of_base.low))
    confidence = min(of_value.confidence, of_base.confidence)
    return Interval(low=math.exp(center - below), high=math.exp(center + above), confidence=confidence)


def independent_difference_interval(value: float, of_value: Interval, base: float, of_base: Interval) -> Interval:
    """Returns the interval of value - base, found on samples of their own, from the interval of each.

    The same method, without logarithms.
    """
    below = math.hypot(value - of_value.low, of_base.high - base)
    above = math.hypot(of_value.high - value, base - of_base.low)
    confidence = min(of_value.confidence, of_base.confidence)
    return Interval(low=value - base - below, high=value - base + above, confidence=confidence)
