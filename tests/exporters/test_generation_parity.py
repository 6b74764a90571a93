from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.exporters.generation_parity import GreedyRuns, TokenDifferences, common_prefix, divergence


def test_divergence_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): (1/2) ln(2/3) + (1/2) ln 2 = (1/2) ln(4/3)
    expected, found = np.log([[0.5, 0.5]]).astype("f"), np.log([[0.75, 0.25]]).astype("f")
    assert divergence(expected, found)[0] == pytest.approx(0.5 * np.log(4 / 3), abs=1e-7)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30), st.floats(-50, 50))
def test_divergence_is_torchs_and_never_negative(seed, spread, shift):
    generator = np.random.default_rng(seed)
    expected, found = (generator.standard_normal((3, 17)).astype("f") * spread for _ in range(2))
    mine = divergence(expected, found)
    log_p, log_q = (torch.from_numpy(each).double().log_softmax(-1) for each in (expected, found))
    theirs = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-12)
    assert (mine > -1e-12).all()
    np.testing.assert_allclose(divergence(expected, expected + np.float32(shift)), 0, atol=1e-8 * spread**2 + 1e-9)


def test_differences_are_gathered_over_texts():
    differences = TokenDifferences()
    differences.add(np.array([[0.0, 1.0]], "f"), np.array([[0.0, 1.5]], "f"))
    differences.add(np.array([[0.0, 1.0], [2.0, 0.0]], "f"), np.array([[2.0, 1.0], [2.0, 0.0]], "f"))
    assert differences.tokens == 3
    assert differences.largest == 2.0
    assert differences.mean == pytest.approx((0.5 + 2.0) / 6)
    assert differences.agreement == pytest.approx(2 / 3)
    assert differences.divergence_p99 <= divergence(np.array([[0.0, 1.0]], "f"), np.array([[2.0, 1.0]], "f"))[0]


def test_equal_text_is_counted_to_the_first_difference():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([5], [6]) == 0
    runs = GreedyRuns(3, [3, 1])
    assert (runs.mean_equal, runs.share_equal) == (2.0, 0.5)
