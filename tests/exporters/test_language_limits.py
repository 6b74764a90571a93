"""What a comparison with torch allows, and the rounding that it is measured by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from edgekit.exporters.block_rounding import multiply_floats, rounding_in_blocks
from edgekit.exporters.language_limits import EXACT, HALF, OwnRounding, broken
from edgekit.models.quantized import QuantizedLinear, Scheme
from tests.coded_decoders import code_linears
from tests.pico_decoders import pico_decoder

GOOD = dict.fromkeys(EXACT, 0.0) | {"top1_agreement": 1.0, "greedy_equal_share": 1.0}


def test_limits_by_hand():
    limits = OwnRounding(divergence=0.004, divergence_p99=0.02, top1_agreement=0.95).limits()
    assert (limits["divergence"], limits["divergence_p99"]) == (0.008, 0.04)
    assert limits["top1_agreement"] == pytest.approx(0.9)
    assert OwnRounding(0.0, 0.0, 1.0).limits() == HALF, "without codes nothing is rounded but attention"


@given(st.floats(0, 1), st.floats(0, 10), st.floats(0, 1))
def test_limits_are_never_tighter_than_those_of_half_floats(divergence, p99, agreement):
    limits = OwnRounding(divergence, p99, agreement).limits()
    assert limits["divergence"] >= HALF["divergence"]
    assert limits["divergence_p99"] >= HALF["divergence_p99"]
    assert limits["top1_agreement"] <= HALF["top1_agreement"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("divergence", 0.5, "divergence 0.5 is above 1e-05."),
        ("divergence", float("nan"), "divergence nan is above 1e-05."),
        ("top1_agreement", 0.9, "top1_agreement 0.9000 is below 0.995."),
        ("greedy_equal_share", float("nan"), "greedy_equal_share nan is below 0.75."),
    ],
)
def test_a_value_beyond_its_limit_is_told_and_one_that_is_no_number_is_beyond(name, value, message):
    assert broken(GOOD, EXACT) == []
    assert broken({**GOOD, name: value}, EXACT) == [message]


@pytest.mark.parametrize("scheme", [Scheme(bits=4, group_size=64), Scheme(bits=8)], ids=["group of 64", "by channel"])
def test_inputs_are_rounded_as_the_gguf_package_rounds_q8_0(scheme):
    loaded = pico_decoder(layers=1, hidden_size=64, intermediate_size=128, head_dim=16)
    code_linears(loaded, scheme)
    multiply_floats(loaded.model)
    linear = loaded.model.model.layers[0].mlp.down_proj
    assert isinstance(linear, QuantizedLinear)
    inputs = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    # The package stores a block's scale as float16; with values whose largest is 127 / 64 it is exact.
    inputs[:, ::32] = 127 / 64
    inputs = inputs.clamp(-127 / 64, 127 / 64)
    kind = GGMLQuantizationType.Q8_0
    stored = torch.from_numpy(dequantize(quantize(inputs.numpy(), kind), kind).astype(np.float32))
    exact = linear(inputs)
    with rounding_in_blocks(loaded.model):
        found = linear(inputs)
    assert torch.allclose(found, stored @ linear.weight.dequantize().T, atol=1e-5)
    assert not torch.allclose(found, exact, atol=1e-4)
    assert torch.equal(linear(inputs), exact), "outside the block nothing is rounded"
