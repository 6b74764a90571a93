"""Scales: by hand, against every scale there is, and that every format can store them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.models.codes import Scheme
from edgekit.quantization.hqq import hqq_quantize
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.quantization.scales import _SHARES, choose_scales, storable

SCHEMES = [
    Scheme(bits=bits, group_size=16, symmetric=symmetric, activations="float")
    for bits in (4, 3, 2)
    for symmetric in (True, False)
] + [Scheme(bits=4, group_size=16, narrow_scales=True)]


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


def test_a_narrow_scale_is_positive_and_the_largest_weight_still_fits():
    scheme = Scheme(bits=4, group_size=4, narrow_scales=True)
    rows = torch.tensor([[4.0, -1.0, 0.5, 2.0], [-4.0, 1.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]])
    quantized = quantize_tensor(rows, scheme, "range")
    # 4 / 7 = 1.142857 / 2, and 8 significant bits hold 146 / 128 = 1.140625 next to it.
    assert quantized.scales.tolist() == [[146 / 256], [0.5], [1.0]]
    assert quantized.codes.tolist() == [[7, -2, 1, 4], [-8, 2, 1, 4], [0, 0, 0, 0]]


@pytest.mark.parametrize("algorithm", ["range", "least-error", "hqq"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-6, 3))
def test_narrow_scales_are_positive_bfloat16_values(algorithm, seed, exponent):
    generator = np.random.default_rng(seed)
    weight = torch.from_numpy(generator.standard_t(3, size=(8, 64)) * 10.0**exponent).float()
    weight[0, :32] = 0
    scheme = Scheme(bits=4, group_size=32, narrow_scales=True)
    quantized = hqq_quantize(weight, scheme) if algorithm == "hqq" else quantize_tensor(weight, scheme, algorithm)
    scales = quantized.scales.float()
    assert (scales > 0).all()
    assert torch.equal(scales.to(torch.bfloat16).float(), scales)
    if exponent > -4:  # below, float16 itself has fewer bits
        wide = quantize_tensor(weight, Scheme(bits=4, group_size=32), "least-error")
        narrow = quantize_tensor(weight, scheme, "least-error")
        apart = [float((weight - each.dequantize()).norm()) for each in (narrow, wide)]
        assert apart[0] < 1.25 * apart[1]


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


def plain_search(weight, scheme, importance):
    """The candidates of the module docstring, one after the other by the formula: float32 as the search itself."""
    groups = weight.unflatten(1, (-1, scheme.group_size))
    weights = torch.ones(1, 1, 1)
    if importance is not None:
        relative = (importance.double() / importance.double().mean()).clamp(min=1e-4)
        weights = relative.reshape(1, -1, scheme.group_size).float()

    def codes(scales, zeros):
        inverse = (1 / scales).nan_to_num(posinf=0, neginf=0)[..., None]
        return ((groups * inverse).round() + zeros[..., None]).clamp(scheme.code_min, scheme.code_max) - zeros[
            ..., None
        ]

    def error(scales, zeros):
        return (weights * (groups - codes(scales, zeros) * scales[..., None]).square()).sum(dim=2)

    scales, zeros = (found.float() for found in choose_scales(weight, scheme, "range"))
    best = error(scales, zeros)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    for share in _SHARES[scheme.bits]:
        if scheme.symmetric:
            extreme = torch.where(high > -low, high, low)
            offers = [(extreme * (share / code), torch.zeros_like(low)) for code in (scheme.code_min, scheme.code_max)]
            if scheme.narrow_scales:
                offers = [(tried.abs(), tried_zeros) for tried, tried_zeros in offers]
        else:
            tried = (high.clamp(min=0) - low.clamp(max=0)) * (share / scheme.code_max)
            near = torch.round((-low.clamp(max=0) * share / tried).nan_to_num())
            offers = [(tried, (near + step).clamp(0, scheme.code_max)) for step in (0, 1, -1)]
        for tried, tried_zeros in offers:
            centered = codes(tried, tried_zeros)
            power = (weights * centered * centered).sum(dim=2)
            fitted = torch.where(power > 0, (weights * centered * groups).sum(dim=2) / power, tried)
            fitted = storable(fitted, scheme).float()
            found = error(fitted, tried_zeros)
            better = (found < best) & fitted.isfinite() & (fitted != 0)
            best = torch.where(better, found, best)
            scales, zeros = torch.where(better, fitted, scales), torch.where(better, tried_zeros, zeros)
    return scales.half(), zeros.to(torch.uint8)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_what_makes_the_search_fast_changes_no_bit(scheme, weighted):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(40, 64, generator=generator) * torch.logspace(-6, 3, 40)[:, None]
    weight[3] = 0  # a channel of zeros
    weight[4] = weight[4].abs()  # to one side
    importance = torch.rand(64, generator=generator) + 0.01 if weighted else None
    for found, expected in zip(
        choose_scales(weight, scheme, "least-error", importance), plain_search(weight, scheme, importance), strict=True
    ):
        assert torch.equal(found, expected)
