"""Scales: by hand, against every scale there is, and that every format can store them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.models.codes import Scheme
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.quantization.scales import choose_scales

SCHEMES = [
    Scheme(bits=bits, group_size=16, symmetric=symmetric, activations="float")
    for bits in (4, 3, 2)
    for symmetric in (True, False)
]


def squared_error(weight, scheme, choice, importance=None):
    decoded = quantize_tensor(weight, scheme, choice, importance).dequantize().double()
    weights = 1 if importance is None else importance
    return ((decoded - weight.double()).square() * weights).sum(dim=1)


def test_the_largest_weight_falls_on_the_code_farthest_from_zero():
    scheme = Scheme(bits=4, group_size=4, activations="float")
    quantized = quantize_tensor(torch.tensor([[4.0, -1.0, 0.5, 2.0]]), scheme, "range")
    assert quantized.scales.tolist() == [[-0.5]]
    assert quantized.codes.tolist() == [[-8, 2, -1, -4]]


def test_least_error_clips_an_outlier_that_would_cost_the_others_more():
    # 2 bits, codes -2 to 1, 16 weights: 15 ones and a 3. Range: scale -1.5, ones become 1.5. Least error: ones exact.
    weight = torch.ones(1, 16)
    weight[0, 3] = 3.0
    scheme = Scheme(bits=2, group_size=16, activations="float")
    assert float(squared_error(weight, scheme, "range")) == pytest.approx(15 * 0.25)
    assert float(squared_error(weight, scheme, "least-error")) <= 1.0


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-4, 2), weighted=st.booleans())
def test_never_worse_than_the_range_and_exact_in_every_format(scheme, seed, exponent, weighted):
    generator = np.random.default_rng(seed)
    weight = torch.from_numpy(generator.standard_t(3, size=(8, 40)) * 10.0**exponent).float()
    importance = torch.from_numpy(generator.gamma(1.0, size=40)) + 0.01 if weighted else None
    scales, zero_points = choose_scales(weight, scheme, "least-error", importance)
    assert scales.dtype == torch.float16
    assert torch.isfinite(scales).all()
    assert (scales != 0).all()
    best = squared_error(weight, scheme, "least-error", importance)
    assert (best <= squared_error(weight, scheme, "range", importance) * (1 + 1e-5)).all()
    # Q4_1 stores the smallest value, -zero_point * scale, as a float16.
    offset = zero_points.double() * scales.double()
    assert torch.equal(offset.half().double(), offset)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_near_the_best_of_all_float16_scales(bits):
    """Tries each scale within reach in float64: the search may lose a little, for it looks at a few dozen."""
    scheme = Scheme(bits=bits, group_size=32, activations="float")
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
    every = torch.arange(0.02, 2.5, 0.004).double()
    every = torch.cat([every, -every])[:, None, None]
    codes = (weight.double() / every).round().clamp(scheme.code_min, scheme.code_max)
    best = (codes * every - weight.double()).square().sum(dim=2).amin(dim=0)
    found = squared_error(weight, scheme, "least-error")
    assert float(found.sum() / best.sum()) < 1.02


def test_columns_that_matter_more_are_hit_more_closely():
    scheme = Scheme(bits=3, group_size=32, activations="float")
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    importance = torch.ones(32)
    importance[:4] = 100.0
    plain, weighted = (quantize_tensor(weight, scheme, importance=given).dequantize() for given in (None, importance))
    assert (weighted - weight)[:, :4].square().sum() < 0.5 * (plain - weight)[:, :4].square().sum()
