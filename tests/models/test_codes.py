"""Packed codes: the layout by hand, that nothing is lost, and that no byte is wasted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UnsupportedError
from edgekit.models.codes import QuantizedTensor, Scheme, pack, packed_width, unpack


def test_eight_3_bit_codes_fill_three_bytes_lowest_bit_first():
    # 1 2 3 4 5 6 7 0, each lowest bit first: 100 010 110 001 101 011 111 000, read eight at a time
    bits = "100010110001101011111000"
    expected = [int(bits[start : start + 8][::-1], 2) for start in (0, 8, 16)]
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]]), 3).tolist() == [expected]


def test_bytes_hold_two_4_bit_or_four_2_bit_codes_the_first_one_low():
    assert pack(torch.tensor([[1, 2, 15]]), 4).tolist() == [[1 + (2 << 4), 15]]
    assert pack(torch.tensor([[3, 0, 1, 2, 1]]), 2).tolist() == [[3 + (1 << 4) + (2 << 6), 1]]


@given(
    bits=st.sampled_from([8, 4, 3, 2]), rows=st.integers(1, 4), columns=st.integers(1, 70), seed=st.integers(0, 1000)
)
def test_packing_loses_and_wastes_nothing(bits, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    packed = pack(torch.from_numpy(codes), bits)
    # numpy's own bit packing, an independent writer of the same stream
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    expected = np.packbits(stream.reshape(rows, -1), axis=1, bitorder="little")
    np.testing.assert_array_equal(packed.numpy(), expected)
    assert packed.shape[1] == packed_width(columns, bits) == -(-columns * bits // 8)
    np.testing.assert_array_equal(unpack(packed, columns, bits).numpy(), codes)


@pytest.mark.parametrize(
    ("scheme", "low", "high"),
    [
        (Scheme(bits=8), -127, 127),
        (Scheme(bits=4, group_size=32), -8, 7),
        (Scheme(bits=3, group_size=32), -4, 3),
        (Scheme(bits=2, group_size=32), -2, 1),
        (Scheme(bits=3, group_size=32, symmetric=False), 0, 7),
    ],
)
def test_the_range_of_codes(scheme, low, high):
    assert (scheme.code_min, scheme.code_max) == (low, high)


def test_the_bytes_of_a_weight_are_those_of_its_packed_parts():
    scheme = Scheme(bits=3, group_size=32, symmetric=False)
    weight = QuantizedTensor(
        torch.zeros(10, 96, dtype=torch.uint8), torch.ones(10, 3).half(), torch.zeros(10, 3, dtype=torch.uint8), scheme
    )
    assert weight.packed_bytes == 10 * (96 * 3 // 8 + 3 * 2 + 2)


def test_five_bits_are_refused():
    with pytest.raises(UnsupportedError, match="found 5, expected 8, 4, 3 or 2"):
        Scheme(bits=5)
