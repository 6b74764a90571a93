"""How onnxruntime rounds before 4-bit codes on ARM64: by hand, and which linears; the kernel itself is emulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.exporters.arm_rounding import cut_to_bfloat16, multiply_floats_on_arm, rounding_on_arm
from edgekit.models.codes import QuantizedTensor, Scheme
from edgekit.models.quantized import QuantizedLinear

INT4 = Scheme(bits=4, group_size=32)


def linear(scheme=INT4, columns=64):
    groups = -(-columns // scheme.group_size) if scheme.group_size else 1
    codes = torch.randint(-8, 8, (5, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    made = QuantizedLinear(columns, 5, bias=False, scheme=scheme)
    scales = torch.linspace(0.013, 0.9, 5 * groups).reshape(5, groups).to(torch.float16)
    zeros = None if scheme.symmetric else torch.zeros(5, groups, dtype=torch.uint8)
    made.set_weight(QuantizedTensor((codes if scheme.symmetric else codes + 8).to(codes.dtype), scales, zeros, scheme))
    return made


def test_scales_lose_what_a_bfloat16_does_not_hold_towards_zero():
    # 1 + 1/128 is the next bfloat16 after 1
    given = torch.tensor([1.0, 1 + 1 / 128, 1 + 1 / 128 + 1 / 256 + 1 / 512, -(1 + 1 / 256), 2**-24], dtype=torch.half)
    expected = torch.tensor([1.0, 1 + 1 / 128, 1 + 1 / 128, -1.0, 2**-24], dtype=torch.half)
    assert torch.equal(cut_to_bfloat16(given), expected)


@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_a_cut_scale_is_a_bfloat16_next_below(value):
    found = cut_to_bfloat16(torch.tensor([value], dtype=torch.float16))
    assert torch.equal(found, found.bfloat16().to(torch.float16))
    assert abs(float(found)) <= abs(value)
    assert abs(value) - abs(float(found)) <= abs(value) / 128


def test_inside_rows_and_scales_are_rounded_and_afterwards_all_is_as_it_was():
    made = linear()
    network = torch.nn.Sequential(made)
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    linears = multiply_floats_on_arm(network)
    assert linears == [made]
    floats = network(inputs)
    with rounding_on_arm(linears):
        rounded = network(inputs)
    assert torch.equal(network(inputs), floats)
    low = np.minimum(inputs.numpy().min(axis=1, keepdims=True), 0).astype(np.float64)
    step = (np.maximum(inputs.numpy().max(axis=1, keepdims=True), 0) - low) / 255
    codes = np.clip(np.round(inputs.numpy() / step) + np.round(-low / step), 0, 255) - np.round(-low / step)
    weight = made.weight
    scales = (weight.scales.float().numpy().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    matrix = weight.codes.numpy().astype(np.float64) * scales.repeat(32, axis=1)
    np.testing.assert_allclose(rounded.numpy(), (codes * step) @ matrix.T, atol=1e-4)
    assert np.abs(rounded.numpy() - floats.numpy()).max() > 1e-3


@pytest.mark.parametrize(
    ("scheme", "columns", "is_run"),
    [
        (INT4, 64, True),
        (Scheme(bits=3, group_size=32), 64, True),
        (Scheme(bits=4, group_size=64), 128, True),
        (Scheme(bits=4, group_size=16), 64, False),
        (Scheme(bits=4, group_size=64), 96, False),
        (Scheme(bits=4, group_size=32, symmetric=False), 64, False),
        (Scheme(bits=8, group_size=32), 64, False),
        (Scheme(bits=4, group_size=32, activations="float"), 64, False),
        (Scheme(bits=8), 64, False),
    ],
)
def test_only_linears_that_the_kernel_runs_are_taken(scheme, columns, is_run):
    network = torch.nn.Sequential(QuantizedLinear(columns, 4, bias=False, scheme=scheme))
    assert bool(multiply_floats_on_arm(network)) == is_run
    assert network[0].scheme.activations == ("float" if is_run else scheme.activations)
