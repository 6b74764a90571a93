"""The choice of a token: by hand, against the batch sampler in torch, and what must hold for any logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.chat.sampling import Sampling, choose_token
from edgekit.distillation.writing import WritingConfig, _choose
from edgekit.errors import ModelError

LOGITS = arrays(np.float32, st.integers(1, 1500), elements=st.floats(-20, 20, width=32))
UNIFORM = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("uniform", "top_p", "token"),
    [
        (0.0, 1.0, 0),
        (0.19, 1.0, 0),
        (0.21, 1.0, 1),
        (0.69, 1.0, 1),
        (0.71, 1.0, 2),
        (0.999, 1.0, 2),
        # The likeliest alone holds half; with 0.6 the second likeliest joins: 0.5 and 0.3 of 0.8.
        (0.999, 0.5, 1),
        (0.62, 0.6, 1),
        (0.63, 0.6, 2),
    ],
)
def test_by_hand(uniform, top_p, token):
    logits = np.log(np.array([0.2, 0.5, 0.3], dtype=np.float32))
    assert choose_token(logits, uniform, Sampling(1.0, top_p)) == token


def test_temperature_zero_takes_the_likeliest():
    assert choose_token(np.array([1, 3, 2], dtype=np.float32), 0.999, Sampling()) == 1


def test_temperature_sharpens_and_flattens():
    logits = np.log(np.array([0.2, 0.8], dtype=np.float32))
    # p ** 2: 0.04 and 0.64; p ** 0.5: 0.447 and 0.894
    assert choose_token(logits, 0.05, Sampling(0.5)) == 0
    assert choose_token(logits, 0.07, Sampling(0.5)) == 1
    assert choose_token(logits, 0.32, Sampling(2.0)) == 0
    assert choose_token(logits, 0.35, Sampling(2.0)) == 1


@given(LOGITS, UNIFORM, st.sampled_from([0.0, 0.3, 1.0, 3.0]), st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]))
def test_it_chooses_as_the_batch_sampler(logits, uniform, temperature, top_p):
    expected = _choose(
        torch.from_numpy(logits)[None],
        torch.tensor([uniform], dtype=torch.float64),
        WritingConfig(temperature=temperature, top_p=top_p),
    )
    found = choose_token(logits, uniform, Sampling(temperature, top_p))
    if found != int(expected):  # sums in another order fall to the other side of an edge
        p = np.exp(logits.astype(np.float64) / temperature)
        p /= p.sum()
        assert abs(p[found] - p[int(expected)]) < 1e-9 or _is_edge(p, uniform, top_p)


def _is_edge(p: np.ndarray, uniform: float, top_p: float) -> bool:
    order = np.argsort(-p, kind="stable")
    cumulative = np.cumsum(p[order] if top_p < 1 else p)
    kept = cumulative[max(np.searchsorted(cumulative, top_p), 0)] if top_p < 1 else 1.0
    near = np.abs(np.concatenate([cumulative - top_p, cumulative - uniform * kept]))
    return bool(near.min() < 1e-9)


def test_many_draws_have_the_distribution():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(p).astype(np.float32)
    draws = [choose_token(logits, u, Sampling(1.0, 0.9)) for u in (np.arange(1000) + 0.5) / 1000]
    # The first three hold 0.95, the first two 0.8: three stay.
    assert np.bincount(draws, minlength=4) / 1000 == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], abs=2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(value):
    with pytest.raises(ModelError, match="not finite"):
        choose_token(np.array([0, value], dtype=np.float32), 0.5, Sampling())
