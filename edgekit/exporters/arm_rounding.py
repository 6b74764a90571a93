"""What onnxruntime does with 4-bit codes on ARM64 with dot products: KleidiAI rounds rows, and scales to bfloat16.

`MatMulNBits` with `accuracy_level` 4, no zero points and whole groups of a multiple of 32 columns then runs KleidiAI's
kernel `qai8dxp_qsi4c32p`: the input is rounded to 8 bits with one scale and zero point for each row, where other
processors take one scale a group, and the weight's scales lose all but 7 bits of their fraction, cut and not rounded.
Found with onnxruntime 1.32 under emulation: torch that does both is within 6e-8 of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgekit.exporters.block_rounding import rounding_in_rows
from edgekit.exporters.packing import stored_bits
from edgekit.models.quantized import QuantizedLinear

FEATURE = "asimddp"
"""What Linux calls the instructions without which the kernel is another."""

_STORED_BITS, _GROUP = 4, 32
_CUT_BITS = 16  # a bfloat16 is the upper half of a float32


def multiply_floats_on_arm(network: nn.Module) -> list[QuantizedLinear]:
    """Makes every linear that this kernel runs take its input as it is, in place, and returns those linears.

    To be called before the network is run for the first time.
    """
    linears = [module for module in network.modules() if isinstance(module, QuantizedLinear) and _is_run(module)]
    for linear in linears:
        linear.scheme = replace(linear.scheme, activations="float")
    return linears


@contextmanager
def rounding_on_arm(linears: Sequence[QuantizedLinear]) -> Iterator[None]:
    """Rounds inputs and scales of the linears inside the `with` block, as the kernel does."""
    kept = [linear.weight_scales for linear in linears]
    for linear in linears:
        linear.weight_scales = cut_to_bfloat16(linear.weight_scales)
    try:
        with rounding_in_rows(linears):
            yield
    finally:
        for linear, scales in zip(linears, kept, strict=True):
            linear.weight_scales = scales


def cut_to_bfloat16(scales: Tensor) -> Tensor:
    """Returns float16 `scales` with the bits that a bfloat16 holds, towards zero; float16 holds those exactly."""
    bits = scales.float().contiguous().view(torch.int32)
    return ((bits >> _CUT_BITS) << _CUT_BITS).view(torch.float32).to(scales.dtype)


def _is_run(linear: QuantizedLinear) -> bool:
    """Returns whether the kernel runs a linear."""
    scheme, size = linear.scheme, linear.scheme.group_size
    is_whole = size is not None and size % _GROUP == 0 and linear.in_features % size == 0
    is_coded = stored_bits(scheme) == _STORED_BITS and scheme.symmetric
    return is_coded and scheme.activations == "dynamic-int8" and is_whole
