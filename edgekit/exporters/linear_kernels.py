"""The ways that a linear's codes can be written with onnxruntime's operators, by name; which ones a scheme allows.

    dynamic-int8     com.microsoft::DynamicQuantizeMatMul: rounds the input with one scale, multiplies integers
    n-bits-int8      com.microsoft::MatMulNBits, which rounds the input in blocks
    n-bits-float     the same, which takes the input as it is and decodes the codes at every call
    decoded          plain operators that stand for floats: the runtime computes them once, when it loads the file

In all of them the file holds the very codes. They differ in how the input is rounded: as the scheme says, or not at
all, never in another way. Which of them is fastest depends on shape, runtime and processor; `tuning/` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import Site
from edgekit.exporters.lowering_names import Lowering
from edgekit.exporters.packing import Kernel, nbits_matrix, spread_scales, stored_bits
from edgekit.exporters.substitution import MICROSOFT
from edgekit.models.codes import QuantizedTensor, Scheme

_EXACT_ACTIVATIONS, _INT8_ACTIVATIONS = 1, 4  # MatMulNBits' accuracy_level: float32, int8
_TO_FLOAT = {"attributes": {"to": int(ir.DataType.FLOAT)}}


def usual_lowering(scheme: Scheme, name: str) -> Lowering:
    """Returns how a linear of `scheme` is written unless a measurement chose otherwise; `name` is for the message.

    Raises:
        UnsupportedError: no operator computes with the scheme.
    """
    rounds, size = scheme.activations == "dynamic-int8", scheme.group_size
    if scheme.bits == 8 and size is None:
        return "dynamic-int8" if rounds else "decoded"
    if size is not None and size >= 16 and size & (size - 1) == 0:
        if scheme.bits == 8 and not rounds:
            return "decoded"
        return "n-bits-int8" if rounds else "n-bits-float"
    if size is None and not rounds:
        return "n-bits-float"
    raise UnsupportedError(
        f"module '{name}': onnx has no operator for {scheme}; expected 8 bits by channel, fewer bits by channel "
        "with float activations, or a group size of 16, 32, 64, 128 or 256. Quantize it otherwise, or exclude it."
    )


def possible_lowerings(scheme: Scheme, name: str) -> tuple[Lowering, ...]:
    """Returns the ways to write a linear of `scheme`, the usual one first; `name` is for the message.

    None asks for a newer onnxruntime than the usual one does.

    Raises:
        UnsupportedError: no operator computes with the scheme.
    """
    usual = usual_lowering(scheme, name)
    further: dict[Lowering, tuple[Lowering, ...]] = {
        "dynamic-int8": ("decoded",),
        "n-bits-int8": ("n-bits-float", "decoded"),
        "n-bits-float": ("decoded",),
        "decoded": (),
    }
    return (usual, *further[usual])


def dynamic_int8(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Rounds the input to 8 bits with one scale, multiplies integers; codes are stored `(in, out)`."""
    codes = site.constant("codes", weight.codes.T.contiguous().numpy())
    scales = site.constant("scales", weight.scales[:, 0].float().contiguous().numpy())
    zeros = weight.zero_points
    zero_points = None if zeros is None else site.constant("zero_points", zeros[:, 0].contiguous().numpy())
    inputs = [site.inputs, codes, scales, zero_points, bias]
    return site.add("DynamicQuantizeMatMul", inputs, suffix="matmul", domain=MICROSOFT)


def nbits(site: Site, weight: QuantizedTensor, bias: ir.Value | None, *, accuracy_level: int) -> ir.Value:
    """Multiplies blocks of codes; `accuracy_level` says whether the input is rounded."""
    matrix = nbits_matrix(weight)
    inputs = [site.inputs, site.constant("codes", matrix.codes), site.constant("scales", matrix.scales)]
    inputs.append(None if matrix.zero_points is None else site.constant("zero_points", matrix.zero_points))
    attributes = {
        "K": weight.codes.shape[1],
        "N": weight.codes.shape[0],
        "bits": matrix.bits,
        "block_size": matrix.block_size,
        "accuracy_level": accuracy_level,
    }
    output = site.add("MatMulNBits", inputs, suffix="matmul", domain=MICROSOFT, attributes=attributes)
    return site.biased(output, bias)


def decoded(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Multiplies floats: the codes are small in the file, and the runtime folds them into floats when it loads it."""
    matrix = _widened(site, weight) if weight.scheme.bits == 8 else _unpacked(site, weight)
    return site.biased(site.add("MatMul", [site.inputs, matrix], suffix="matmul"), bias)


def _widened(site: Site, weight: QuantizedTensor) -> ir.Value:
    """Returns what 8-bit codes stand for, `(in, out)`, decoded by the runtime."""
    codes = site.add(
        "Cast", [site.constant("codes", weight.codes.T.contiguous().numpy())], suffix="widened", **_TO_FLOAT
    )
    if weight.zero_points is not None:
        zeros = site.constant("zero_points", spread_scales(weight, weight.zero_points))
        zeros = site.add("Cast", [zeros], suffix="zero_points_widened", **_TO_FLOAT)
        codes = site.add("Sub", [codes, zeros], suffix="centered")
    scales = site.constant("scales", spread_scales(weight, weight.scales))
    scales = site.add("Cast", [scales], suffix="scales_widened", **_TO_FLOAT)
    return site.add("Mul", [codes, scales], suffix="weight")


def _unpacked(site: Site, weight: QuantizedTensor) -> ir.Value:
    """Returns what codes of fewer bits stand for, `(in, out)`; codes and scales lie in the file as for MatMulNBits.

    No operator set below 21 has types of 4 bits, and onnxruntime decodes DequantizeLinear at every call; so bytes are
    taken apart by arithmetic on floats, which holds such small integers exactly.
    """
    matrix = nbits_matrix(weight)
    rows, blocks, columns = *matrix.codes.shape[:2], weight.codes.shape[1]
    codes = site.add("Cast", [site.constant("codes", matrix.codes)], suffix="bytes", **_TO_FLOAT)
    digits = _digits(site, codes, stored_bits(weight.scheme))
    last = site.editor.integers(-1)
    parts = [site.add("Unsqueeze", [digit, last], suffix="digit_column") for digit in digits]
    joined = site.add("Concat", parts, suffix="digits", attributes={"axis": -1})
    shape = site.editor.integers(rows, blocks, matrix.block_size)
    unpacked = site.add("Reshape", [joined, shape], suffix="unpacked")
    if weight.zero_points is None:
        middle: ir.Value = site.constant("middle", np.array(2.0 ** (matrix.bits - 1), dtype=np.float32))
    else:
        by_block = weight.zero_points.expand(-1, blocks).unsqueeze(-1)  # one a byte
        zeros = site.constant("zero_points", by_block.contiguous().numpy())
        middle = site.add("Cast", [zeros], suffix="zero_points_widened", **_TO_FLOAT)
    centered = site.add("Sub", [unpacked, middle], suffix="centered")
    scales = site.add("Unsqueeze", [site.constant("scales", matrix.scales), last], suffix="scales_by_block")
    floats = site.add("Mul", [centered, scales], suffix="scaled")
    floats = site.add("Reshape", [floats, site.editor.integers(rows, blocks * matrix.block_size)], suffix="rows")
    if columns != blocks * matrix.block_size:
        bounds = [site.editor.integers(value) for value in (0, columns, 1)]
        floats = site.add("Slice", [floats, *bounds], suffix="unpadded")
    return site.add("Transpose", [floats], suffix="weight", attributes={"perm": [1, 0]})


def _digits(site: Site, values: ir.Value, bits: int) -> list[ir.Value]:
    """Returns the codes in each byte, the low ones first, as floats of the shape of `values`."""
    base = site.editor.constant(f"float_{1 << bits}", np.array(1 << bits, dtype=np.float32))
    digits: list[ir.Value] = []
    for _ in range(8 // bits - 1):
        high = site.add("Floor", [site.add("Div", [values, base], suffix="shifted")], suffix="high")
        above = site.add("Mul", [high, base], suffix="high_part")
        digits.append(site.add("Sub", [values, above], suffix="digit"))
        values = high
    return [*digits, values]


KERNELS: Mapping[Lowering, Kernel] = {
    "dynamic-int8": dynamic_int8,
    "n-bits-int8": partial(nbits, accuracy_level=_INT8_ACTIVATIONS),
    "n-bits-float": partial(nbits, accuracy_level=_EXACT_ACTIVATIONS),
    "decoded": decoded,
}
"""Lowering to what writes it."""
