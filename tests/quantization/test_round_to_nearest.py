"""Codes: the worked example, the bounds, and that onnxruntime's own kernels multiply them exactly."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.models.quantized import Scheme
from edgekit.quantization.round_to_nearest import quantize_tensor

CHANNEL = Scheme(bits=8, group_size=None, symmetric=True, activations="dynamic-int8")
REDUCED = Scheme(bits=8, group_size=None, symmetric=True, activations="dynamic-int8", reduce_range=True)


def test_worked_example():
    # absmax 2 over 127 is 0.015748, rounded up to float16: 0.0157547; 1 over that is 63.5, 0.5 over that 31.7
    codes = quantize_tensor(torch.tensor([[2.0, -1.0, 0.5, 0.0]]), CHANNEL)
    scale = float(codes.scales[0, 0])
    assert scale == float(np.float16(scale))
    assert scale == pytest.approx(2 / 127, rel=1e-3)
    assert codes.codes.tolist() == [[127, round(-1 / scale), round(0.5 / scale), 0]]


SCHEMES = [
    CHANNEL,
    Scheme(bits=8, group_size=16, symmetric=True, activations="float"),
    Scheme(bits=4, group_size=16, symmetric=True, activations="float"),
    Scheme(bits=4, group_size=32, symmetric=False, activations="float"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-3, 2))
def test_no_weight_is_further_than_half_a_step(scheme, seed, exponent):
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 64)) * 10.0**exponent).float()
    quantized = quantize_tensor(weight, scheme, "range")
    step = quantized.scales.double().abs().repeat_interleave(64 // quantized.scales.shape[1], dim=1)
    error = (quantized.dequantize().double() - weight.double()).abs()
    # An asymmetric range gives up to another half a step at its ends, where the zero point was rounded; a range with
    # one code more on one side gives up to another half on the other.
    assert (error <= step * (0.501 if scheme.bits == 8 else 1.01)).all()
    assert int(quantized.codes.min()) >= scheme.code_min
    assert int(quantized.codes.max()) <= scheme.code_max


def test_full_range_codes_use_their_whole_range():
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    assert (quantize_tensor(weight, CHANNEL).codes.abs().amax(dim=1) == 127).all()


def test_a_channel_of_zeros_stays_zero():
    quantized = quantize_tensor(torch.zeros(2, 8), CHANNEL)
    assert torch.equal(quantized.dequantize(), torch.zeros(2, 8))


@pytest.mark.parametrize("kind", ["normal", "constant", "alternating"])
def test_reduced_codes_never_saturate_in_the_kernel(kind):
    """The largest activation, 255, on both of a pair: x86 without VNNI adds the two products in 16 bits."""
    generator = torch.Generator().manual_seed(0)
    weight = {
        "normal": torch.randn(8, 64, generator=generator),
        "constant": torch.ones(8, 64),
        "alternating": torch.ones(8, 64) * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(16),
    }[kind]
    codes = quantize_tensor(weight, REDUCED).codes.numpy()
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", 8])],
        [numpy_helper.from_array(np.ascontiguousarray(codes.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = np.full((4, 64), 255, dtype=np.uint8)
    (found,) = session.run(None, {"a": inputs})
    np.testing.assert_array_equal(found, inputs.astype(np.int64) @ codes.T.astype(np.int64))
