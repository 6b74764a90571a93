import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UnsupportedError
from edgekit.exporters.gguf_blocks import BLOCK, block_type, encode
from edgekit.models.quantized import QuantizedTensor, Scheme
from tests.coded_decoders import exact_minimum_codes


def random_codes(seed: int, rows: int, columns: int, scheme: Scheme) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = scheme.code_min, scheme.code_max
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator)
    groups = scheme.groups(columns)
    scales = torch.rand(rows, groups, generator=generator).half() * 0.1
    return QuantizedTensor(codes.to(torch.int8 if scheme.symmetric else torch.uint8), scales, None, scheme)


def test_a_q8_0_block_by_hand() -> None:
    codes = torch.arange(-16, 16, dtype=torch.int8)[None]
    weight = QuantizedTensor(codes, torch.tensor([[0.5]]).half(), None, Scheme(bits=8, group_size=32))
    blocks = encode(weight)
    # float16 0.5 is 0x3800; the codes follow as signed bytes.
    expected = bytes([0x00, 0x38]) + bytes(code % 256 for code in range(-16, 16))
    assert (blocks.type, blocks.data.tobytes()) == ("Q8_0", expected)


def test_a_q4_0_block_by_hand() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int8)
    codes[0, 0], codes[0, 1], codes[0, 16] = -7, 7, 3
    weight = QuantizedTensor(codes, torch.tensor([[2.0]]).half(), None, Scheme(bits=4, group_size=32))
    # Codes are moved by 8; the first half of the block lies in the low bits of its 16 bytes, the second in the high.
    expected = bytes([0x00, 0x40, 0xB1, 0x8F]) + bytes([0x88] * 14)
    blocks = encode(weight)
    assert (blocks.type, blocks.data.tobytes()) == ("Q4_0", expected)


def test_a_q4_1_block_by_hand() -> None:
    codes = torch.full((1, 32), 3, dtype=torch.uint8)
    codes[0, 31] = 15
    scheme = Scheme(bits=4, group_size=32, symmetric=False, activations="float")
    weight = QuantizedTensor(codes, torch.tensor([[0.5]]).half(), torch.tensor([[4]], dtype=torch.uint8), scheme)
    # d = 0.5, m = -4 * 0.5 = -2 (0xC000).
    expected = bytes([0x00, 0x38, 0x00, 0xC0]) + bytes([0x33] * 15) + bytes([0xF3])
    blocks = encode(weight)
    assert (blocks.type, blocks.data.tobytes()) == ("Q4_1", expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 8),
    st.sampled_from([8, 4]),
    st.sampled_from([32, 64, 128, 96, None]),
)
def test_the_gguf_package_reads_exactly_the_codes_values(
    seed: int, rows: int, blocks: int, bits: int, group_size: int | None
) -> None:
    weight = random_codes(seed, rows, blocks * BLOCK, Scheme(bits=bits, group_size=group_size))
    encoded = encode(weight)
    read = dequantize(encoded.data, GGMLQuantizationType[encoded.type])
    assert np.array_equal(read, weight.dequantize().numpy())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([32, 64, None]), st.floats(1e-3, 1e3))
def test_q4_1_is_exact_for_scales_of_seven_bits(seed: int, rows: int, group_size: int | None, size: float) -> None:
    values = torch.randn(rows, 128, generator=torch.Generator().manual_seed(seed)) * size + size
    weight = exact_minimum_codes(values, group_size)
    encoded = encode(weight)
    read = dequantize(encoded.data, GGMLQuantizationType.Q4_1)
    assert encoded.type == "Q4_1"
    assert np.array_equal(read, weight.dequantize().numpy())


def test_a_minimum_that_float16_cannot_hold_is_refused_and_counted() -> None:
    scheme = Scheme(bits=4, group_size=32, symmetric=False, activations="float")
    scales = torch.tensor([[1.0, 1.0009765625]]).half()  # 1 + 2**-10: eleven significant bits
    codes = torch.zeros(1, 64, dtype=torch.uint8)
    for zero, is_exact in ((0, True), (1, True), (8, True), (3, False), (15, False)):
        weight = QuantizedTensor(codes, scales, torch.full((1, 2), zero, dtype=torch.uint8), scheme)
        if is_exact:
            encode(weight)
            continue
        with pytest.raises(UnsupportedError, match=r"1 of 2 blocks would be rounded.*at most 7 significant bits"):
            encode(weight)


@pytest.mark.parametrize(
    ("scheme", "columns", "message"),
    [
        (Scheme(bits=8, symmetric=False, group_size=32), 64, "8-bit asymmetric codes, for which it has no block"),
        (Scheme(bits=8, group_size=32), 48, r"rows of 48 weights; Q8_0 blocks need a multiple of 32"),
        (Scheme(bits=4, group_size=16), 64, r"in groups of 16; expected groups of 32, 64 or 128"),
    ],
)
def test_schemes_without_a_block_are_refused_by_name(scheme: Scheme, columns: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        block_type(scheme, columns)
