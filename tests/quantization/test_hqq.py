"""HQQ: the shrinkage against a numeric minimum, and that the norm it minimizes gets smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.models.codes import Scheme
from edgekit.quantization.hqq import HqqConfig, hqq_quantize, shrink
from edgekit.quantization.round_to_nearest import quantize_tensor


def test_shrink_by_hand():
    # p = 0.5, beta = 2: x - x^-0.5 / 2; at 4: 4 - 0.25; at 0.25: 0.25 - 1, below zero
    found = shrink(torch.tensor([4.0, -4.0, 0.25, 0.0]), 0.5, 2.0)
    assert found.tolist() == pytest.approx([3.75, -3.75, 0.0, 0.0])


def test_with_p_one_the_shrinkage_is_the_exact_minimum():
    """For p = 1 it minimizes |z| + beta / 2 (z - x)^2, here found on a grid."""
    grid = np.linspace(-3, 3, 60_001)
    for x in (-2.0, -0.3, 0.05, 0.4, 1.7):
        wanted = grid[np.argmin(np.abs(grid) + 2.0 * (grid - x) ** 2)]
        assert float(shrink(torch.tensor([x]), 1.0, 4.0)) == pytest.approx(wanted, abs=2e-4)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from([4, 3, 2]), symmetric=st.booleans(), exponent=st.integers(-4, 1))
def test_the_norm_is_never_larger_than_where_it_started(seed, bits, symmetric, exponent):
    weight = torch.from_numpy(np.random.default_rng(seed).standard_t(3, size=(6, 64)) * 10.0**exponent).float()
    scheme = Scheme(bits=bits, group_size=32, symmetric=symmetric, activations="float")
    start, found = quantize_tensor(weight, scheme, "range"), hqq_quantize(weight, scheme)
    steps = start.scales.double().abs().repeat_interleave(32, dim=1)

    def norm(quantized):
        errors = (quantized.dequantize().double() - weight.double()) / steps
        return errors.abs().pow(0.7).unflatten(1, (-1, 32)).sum(dim=2)

    assert (norm(found) <= norm(start) * (1 + 1e-4)).all()


def test_outliers_bear_the_error():
    """A few weights far out: least squares moves every weight for them, HQQ lets them be wrong."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator)
    weight[:, ::32] *= 4
    scheme = Scheme(bits=3, group_size=32, activations="float")
    ordinary = torch.ones(64, dtype=torch.bool)
    ordinary[::32] = False
    start, found = (quantize_tensor(weight, scheme, "range"), hqq_quantize(weight, scheme, HqqConfig(iterations=40)))
    before, after = ((q.dequantize() - weight)[:, ordinary].square().mean() for q in (start, found))
    assert after < 0.8 * before


def test_eight_bits_are_rounded_to_nearest():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(hqq_quantize(weight, Scheme()).codes, quantize_tensor(weight, Scheme()).codes)
