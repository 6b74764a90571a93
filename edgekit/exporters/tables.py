"""Lowers embedding tables; a table that a linear shares (a tied head) is stored once, in the linear's layout.

    float                              Gather
    float, shared                      Gather; the linear reads the table with its transposition built in
    int8 by row                        Gather of codes and scales, multiplied
    other codes                        com.microsoft::GatherBlockQuantized
    codes, shared, MatMulNBits         com.microsoft::GatherBlockQuantized on the linear's codes
    codes, shared, otherwise           Gather of columns of the linear's codes

No code is chosen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import GraphEditor, Site, module_of
from edgekit.exporters.packing import NBitsMatrix, nbits_matrix
from edgekit.exporters.standard_lowering import coded_rows
from edgekit.exporters.substitution import MICROSOFT
from edgekit.models.codes import QuantizedTensor
from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear

_SMALLEST_BLOCK = 16
_TO_FLOAT = {"attributes": {"to": int(ir.DataType.FLOAT)}}
# The ids are (B, T), so columns of (H, V) come out as (H, B, T).
_FEATURES_LAST: dict[str, Any] = {"attributes": {"perm": [1, 2, 0]}}


def lower_embedding(
    editor: GraphEditor,
    node: ir.Node,
    modules: Mapping[str, nn.Module],
    look_up: Callable[[Site, QuantizedEmbedding], ir.Value] | None = None,
) -> None:
    """Replaces the placeholder of a table, after the linears are lowered; `look_up` writes it, where it is given.

    Raises:
        UnsupportedError: no operator reads the table's codes.
    """
    name = module_of(node)
    table = modules[name]
    site = Site(editor, node, node.inputs[0], name)
    if isinstance(table, QuantizedEmbedding):
        rows = _coded_rows(site, table, modules) if look_up is None else look_up(site, table)
        if table.embed_scale is not None:
            factor = site.constant("embed_scale", table.embed_scale.detach().float().numpy())
            rows = site.add("Mul", [rows, factor], suffix="scaled")
        editor.replace(node, rows)
        return
    matrix = site.constant("weight", table.get_parameter("weight").detach().float().contiguous().numpy())
    editor.replace(node, site.add("Gather", [matrix, site.inputs], suffix="rows"))


def shared_table(linear: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    """Returns the name of the float table whose weight `linear` uses as it is, or None."""
    weight = getattr(linear, "weight", None)
    tables = ((name, module) for name, module in modules.items() if isinstance(module, nn.Embedding))
    return next((name for name, table in tables if table.weight is weight), None)


def shared_linear(table: QuantizedEmbedding, modules: Mapping[str, nn.Module]) -> str | None:
    """Returns the name of the linear that computes with the codes of `table`, or None."""
    for name, module in modules.items():
        if isinstance(module, QuantizedLinear) and _same_memory(module.weight_codes, table.weight_codes):
            return name
    return None


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _coded_rows(site: Site, table: QuantizedEmbedding, modules: Mapping[str, nn.Module]) -> ir.Value:
    linear = shared_linear(table, modules)
    scheme, weight = table.scheme, table.quantized_weight()
    stored = None if linear is None else site.editor.graph.initializers.get(f"{linear}.codes")
    if stored is not None and stored.shape is not None:
        if len(stored.shape) == 3:
            return _blocks(site, linear or "", weight)
        return _columns(site, linear or "")
    if scheme.bits == 8 and scheme.group_size is None and scheme.symmetric:
        return coded_rows(site, weight)
    size = scheme.group_size
    if size is not None and (size < _SMALLEST_BLOCK or size & (size - 1)):
        raise UnsupportedError(
            f"module '{site.name}': onnx has no operator for a table in {scheme}; expected a group size of 16, 32, 64, "
            "128 or 256, or one scale a row. Quantize it otherwise, or exclude it."
        )
    matrix = nbits_matrix(weight)
    site.constant("codes", matrix.codes)
    site.constant("scales", matrix.scales)
    return _blocks(site, site.name, weight)


def _blocks(site: Site, owner: str, weight: QuantizedTensor) -> ir.Value:
    """Gathers rows of MatMulNBits' codes, `OWNER.codes` (V, blocks, bytes), as they are."""
    matrix = nbits_matrix(weight)
    constants = site.editor.graph.initializers
    scales = site.add("Unsqueeze", [constants[f"{owner}.scales"], site.editor.integers(-1)], suffix="scales_by_block")
    zeros = (
        None if matrix.zero_points is None else site.constant("zero_points_by_block", _zeros_by_block(weight, matrix))
    )
    attributes = {"bits": matrix.bits, "block_size": matrix.block_size, "gather_axis": 0, "quantize_axis": 2}
    inputs = [constants[f"{owner}.codes"], site.inputs, scales, zeros]
    rows = site.add("GatherBlockQuantized", inputs, suffix="blocks", domain=MICROSOFT, attributes=attributes)
    joined = site.add("Reshape", [rows, site.editor.integers(0, 0, -1)], suffix="rows")
    columns = weight.codes.shape[1]
    if columns % matrix.block_size == 0:
        return joined
    bounds = [site.editor.integers(bound) for bound in (0, columns, 2)]
    return site.add("Slice", [joined, *bounds], suffix="unpadded_rows")


def _zeros_by_block(weight: QuantizedTensor, matrix: NBitsMatrix) -> np.ndarray:
    """Returns zero points one a byte, uint8 (V, blocks, 1)."""
    zeros = weight.zero_points
    if zeros is None:
        raise UnsupportedError("found no zero points, expected codes that are not symmetric.")
    return zeros.to(torch.uint8).expand(-1, matrix.scales.shape[1]).unsqueeze(-1).contiguous().numpy()


def _columns(site: Site, owner: str) -> ir.Value:
    """Gathers columns of a linear's codes, `OWNER.codes` (H, V), and scales them."""
    constants = site.editor.graph.initializers
    parts = {what: constants.get(f"{owner}.{what}") for what in ("codes", "zero_points", "scales")}
    wide: dict[str, ir.Value] = {}
    for what, matrix in parts.items():
        if matrix is None or matrix.shape is None:
            continue
        if len(matrix.shape) == 1:
            found = site.add("Gather", [matrix, site.inputs], suffix=f"{what}_of_ids", dtype=matrix.dtype)
            rows = site.add("Unsqueeze", [found, site.editor.integers(-1)], suffix=f"{what}_rows", dtype=matrix.dtype)
        else:
            inputs = [matrix, site.inputs]
            found = site.add("Gather", inputs, suffix=f"{what}_of_ids", dtype=matrix.dtype, attributes={"axis": 1})
            rows = site.add("Transpose", [found], suffix=f"{what}_rows", dtype=matrix.dtype, **_FEATURES_LAST)
        wide[what] = site.add("Cast", [rows], suffix=f"{what}_widened", **_TO_FLOAT)
    centered = wide["codes"]
    if "zero_points" in wide:
        centered = site.add("Sub", [centered, wide["zero_points"]], suffix="centered")
    return site.add("Mul", [centered, wide["scales"]], suffix="rows")
