"""Lowers codes to operators of the ONNX standard alone, for runtimes without onnxruntime's own; operator set 21.

    linear, 8 bits by channel, dynamic      DynamicQuantizeLinear + MatMulInteger, scaled by both scales
    linear, float activations               DequantizeLinear in blocks + Transpose + MatMul
    linear, in groups, dynamic              none: no operator rounds activations in blocks
    linear, without activation rounding     as with float activations
    embedding, 8 bits by row, symmetric     Gather of codes and of scales, multiplied
    other tables                            DequantizeLinear + Gather

Codes of 4, 3 and 2 bits lie in ONNX's int4 and uint4. Weights keep torch's layout, (out, in), where they are decoded:
onnxruntime makes MatMulNBits of DequantizeLinear and MatMul, and then rounds activations that are to stay floats; with
blocks and a Transpose between them it does not, so one scale a channel is written as a block as well. No code is
chosen here.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from torch import Tensor

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import Site
from edgekit.exporters.packing import Kernel
from edgekit.models.codes import QuantizedTensor, Scheme
from edgekit.models.quantized import QuantizedEmbedding

STANDARD_OPSET = 21
"""DequantizeLinear has blocks, and int4, from here on."""

_TO_FLOAT = {"attributes": {"to": int(ir.DataType.FLOAT)}}
_TRANSPOSED = {"attributes": {"perm": [1, 0]}}


def standard_kernel(scheme: Scheme, name: str, *, round_activations: bool) -> Kernel:
    """Returns what writes a linear of `scheme`; `name` is for the message.

    Raises:
        UnsupportedError: no standard operator computes with the scheme.
    """
    if not round_activations or scheme.activations == "float":
        return _decoded
    if scheme.bits == 8 and scheme.group_size is None:
        return _dynamic_int8
    raise UnsupportedError(
        f"module '{name}': onnx in the standard dialect has no operator for {scheme}: none rounds activations in "
        "blocks. Quantize it with float activations, or 8 bits by channel."
    )


def standard_table(site: Site, table: QuantizedEmbedding, *, gather_codes: bool = True) -> ir.Value:
    """Returns the rows of the ids that `site` reads, before any `embed_scale`."""
    weight = table.quantized_weight()
    if gather_codes and weight.scheme.bits == 8 and weight.scheme.group_size is None and weight.scheme.symmetric:
        return coded_rows(site, weight)
    return site.add("Gather", [_floats(site, weight), site.inputs], suffix="rows")


def coded_rows(site: Site, weight: QuantizedTensor) -> ir.Value:
    """Gathers rows of int8 codes and their scales, multiplied."""
    wide = []
    for what, tensor in (("codes", weight.codes), ("scales", weight.scales)):
        matrix = site.constant(what, tensor.numpy())
        rows = site.add("Gather", [matrix, site.inputs], suffix=f"{what}_of_ids", dtype=matrix.dtype)
        wide.append(site.add("Cast", [rows], suffix=f"{what}_widened", **_TO_FLOAT))
    return site.add("Mul", wide, suffix="rows")


def _dynamic_int8(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Rounds the input to 8 bits with one scale, multiplies integers; codes are stored `(in, out)`."""
    names = [site.editor.unique(f"{site.name}.{what}") for what in ("rounded", "input_scale", "input_zero_point")]
    rounded, scale, zero_point = site.editor.add_many(site.before, "DynamicQuantizeLinear", [site.inputs], names=names)
    rounded.type = zero_point.type = ir.TensorType(ir.DataType.UINT8)
    codes = site.constant("codes", weight.codes.T.contiguous().numpy())
    zeros = weight.zero_points
    weight_zeros = None if zeros is None else site.constant("zero_points", zeros[:, 0].contiguous().numpy())
    inputs = [rounded, codes, zero_point, weight_zeros]
    total = site.add("MatMulInteger", inputs, suffix="total", dtype=ir.DataType.INT32)
    total = site.add("Cast", [total], suffix="total_widened", **_TO_FLOAT)
    scales = site.constant("scales", weight.scales[:, 0].float().contiguous().numpy())
    both = site.add("Mul", [scale, scales], suffix="both_scales")
    return site.biased(site.add("Mul", [total, both], suffix="matmul"), bias)


def _decoded(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Multiplies floats: the runtime decodes the codes `(out, in)`, at load or at every call."""
    matrix = site.add("Transpose", [_floats(site, weight)], suffix="transposed", **_TRANSPOSED)
    return site.biased(site.add("MatMul", [site.inputs, matrix], suffix="matmul"), bias)


def _floats(site: Site, weight: QuantizedTensor) -> ir.Value:
    """Returns what the codes stand for, `(out, in)` float32, decoded by the runtime."""
    inputs = [
        site.constant("codes", _integers(weight.codes, weight.scheme)),
        site.constant("scales", weight.scales.float().contiguous().numpy()),
    ]
    if weight.zero_points is not None:
        inputs.append(site.constant("zero_points", _integers(weight.zero_points, weight.scheme)))
    # One scale a channel, or a group wider than the row, is a block of the whole row.
    columns = weight.codes.shape[1]
    attributes = {"axis": 1, "block_size": min(weight.scheme.group_size or columns, columns)}
    return site.add("DequantizeLinear", inputs, suffix="weight", attributes=attributes)


def _integers(values: Tensor, scheme: Scheme) -> np.ndarray:
    """Returns codes or zero points in the narrowest of ONNX's types that holds them."""
    array = values.contiguous().numpy()
    if scheme.bits == 8:
        return array
    return array.astype(ml_dtypes.int4 if scheme.symmetric else ml_dtypes.uint4)
