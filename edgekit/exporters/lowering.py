"""Lowers the placeholders of `substitution` to the operators that runtimes have, code for code.

    linear, float                           MatMul + Add
    linear, int8 by channel, dynamic        com.microsoft::DynamicQuantizeMatMul
    linear, int8 by channel, float          the codes, widened and scaled at load, + MatMul
    linear, 8, 4, 3 or 2 bits by group      com.microsoft::MatMulNBits (3 bits in the room of 4)
    linear, 4, 3 or 2 bits by channel       the same, the scale repeated; float activations only
    embedding, float                        Gather
    embedding, int8 by row                  Gather of codes and scales, multiplied

Linears that read one input in one way become one matmul: query, key and value of an attention, gate and value of a
gated feed-forward. Requires a graph of `tracing`. Ensures that no placeholder is left and that every code is stored as
it is; no code is chosen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import GraphEditor
from edgekit.exporters.packing import concatenate, nbits_matrix, spread_scales
from edgekit.exporters.substitution import DOMAIN, MICROSOFT
from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedTensor, Scheme

_GELU_OPSET = 20
_EXACT_ACTIVATIONS, _INT8_ACTIVATIONS = 1, 4  # MatMulNBits' accuracy_level: float32, int8

Linear = nn.Linear | QuantizedLinear


def lower(model: ir.Model, modules: Mapping[str, nn.Module]) -> None:
    """Replaces every placeholder, in place; `modules` are the model's by name.

    Raises:
        UnsupportedError: no operator computes with a module's scheme.
    """
    editor = GraphEditor(model.graph)
    opset = int(model.opset_imports[""])
    for group in _linear_groups(model.graph, modules):
        _lower_linears(editor, group, modules)
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == "Embedding":
            _lower_embedding(editor, node, modules)
        elif node.domain == DOMAIN or (node.op_type == "Gelu" and not node.domain):
            _lower_gelu(editor, node, opset)
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports[MICROSOFT] = 1


@dataclass(frozen=True)
class _Site:
    """Where a matmul goes: before a node, on a value, under a name."""

    editor: GraphEditor
    before: ir.Node
    inputs: ir.Value | None
    name: str

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        """Returns the constant `NAME.WHAT`."""
        return self.editor.constant(f"{self.name}.{what}", array)

    def add(self, operator: str, inputs: Sequence[ir.Value | None], *, suffix: str, **options: Any) -> ir.Value:
        """Inserts a node called `NAME.SUFFIX` and returns its output."""
        name = self.editor.unique(f"{self.name}.{suffix}")
        return self.editor.add(self.before, operator, inputs, name=name, **options)


def module_of(node: ir.Node) -> str:
    """Returns the name of the module that a placeholder stands for."""
    return node.attributes["module"].as_string()


def _linear_groups(graph: ir.Graph, modules: Mapping[str, nn.Module]) -> list[list[ir.Node]]:
    """Returns the linears that read the same input in the same way, together, in the order of the graph."""
    groups: dict[tuple[int, Scheme | None, bool], list[ir.Node]] = {}
    for node in graph:
        if node.domain == DOMAIN and node.op_type == "Linear":
            module = modules[module_of(node)]
            key = (id(node.inputs[0]), getattr(module, "scheme", None), module.bias is not None)
            groups.setdefault(key, []).append(node)
    return list(groups.values())


def _lower_linears(editor: GraphEditor, nodes: Sequence[ir.Node], modules: Mapping[str, nn.Module]) -> None:
    names = [module_of(node) for node in nodes]
    linears = [_linear(modules[name]) for name in names]
    site = _Site(editor, nodes[0], nodes[0].inputs[0], _joined_name(names))
    bias = _bias(site, linears)
    output = _matmul(site, linears, bias)
    if len(nodes) == 1:
        editor.replace(nodes[0], output)
        return
    sizes = editor.integers(*(linear.out_features for linear in linears))
    parts = editor.add_many(
        nodes[0],
        "Split",
        [output, sizes],
        attributes={"axis": -1},
        names=[editor.unique(f"{name}.output") for name in names],
    )
    for node, part in zip(nodes, parts, strict=True):
        editor.replace(node, part)


def _matmul(site: _Site, linears: Sequence[Linear], bias: ir.Value | None) -> ir.Value:
    coded = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    if len(coded) == len(linears):
        weight = concatenate([linear.weight for linear in coded])
        return _kernel(weight.scheme, site.name)(site, weight, bias)
    weights = torch.cat([linear.weight.detach() for linear in linears if not isinstance(linear, QuantizedLinear)])
    matrix = site.constant("weight", _float(weights.T))
    return _with_bias(site, site.add("MatMul", [site.inputs, matrix], suffix="matmul"), bias)


def _kernel(scheme: Scheme, name: str) -> Callable[[_Site, QuantizedTensor, ir.Value | None], ir.Value]:
    if scheme.bits == 8 and scheme.group_size is None:
        return _dynamic_int8 if scheme.activations == "dynamic-int8" else _widened
    if scheme.group_size is not None and scheme.group_size >= 16 and scheme.group_size & (scheme.group_size - 1) == 0:
        return _widened if scheme.bits == 8 and scheme.activations == "float" else _nbits
    if scheme.group_size is None and scheme.activations == "float":
        return _nbits
    raise UnsupportedError(
        f"module '{name}': onnx has no operator for {scheme}; expected 8 bits by channel, fewer bits by channel "
        "with float activations, or a group size of 16, 32, 64, 128 or 256. Quantize it otherwise, or exclude it."
    )


def _dynamic_int8(site: _Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Rounds the input to 8 bits with one scale, multiplies integers; codes are stored `(in, out)`."""
    codes = site.constant("codes", weight.codes.T.contiguous().numpy())
    scales = site.constant("scales", _float(weight.scales[:, 0]))
    zeros = weight.zero_points
    zero_points = None if zeros is None else site.constant("zero_points", zeros[:, 0].contiguous().numpy())
    inputs = [site.inputs, codes, scales, zero_points, bias]
    return site.add("DynamicQuantizeMatMul", inputs, suffix="matmul", domain=MICROSOFT)


def _widened(site: _Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Multiplies floats: the codes are small in the file, and the runtime folds them into floats when it loads it."""
    codes = site.add(
        "Cast", [site.constant("codes", weight.codes.T.contiguous().numpy())], suffix="widened", **_TO_FLOAT
    )
    if weight.zero_points is not None:
        zeros = site.constant("zero_points", spread_scales(weight, weight.zero_points))
        zeros = site.add("Cast", [zeros], suffix="zero_points_widened", **_TO_FLOAT)
        codes = site.add("Sub", [codes, zeros], suffix="centered")
    scales = site.constant("scales", spread_scales(weight, weight.scales))
    scales = site.add("Cast", [scales], suffix="scales_widened", **_TO_FLOAT)
    matrix = site.add("Mul", [codes, scales], suffix="weight")
    return _with_bias(site, site.add("MatMul", [site.inputs, matrix], suffix="matmul"), bias)


def _nbits(site: _Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    matrix = nbits_matrix(weight)
    inputs = [site.inputs, site.constant("codes", matrix.codes), site.constant("scales", matrix.scales)]
    inputs.append(None if matrix.zero_points is None else site.constant("zero_points", matrix.zero_points))
    int8 = weight.scheme.activations == "dynamic-int8"
    attributes = {
        "K": weight.codes.shape[1],
        "N": weight.codes.shape[0],
        "bits": matrix.bits,
        "block_size": matrix.block_size,
        "accuracy_level": _INT8_ACTIVATIONS if int8 else _EXACT_ACTIVATIONS,
    }
    output = site.add("MatMulNBits", inputs, suffix="matmul", domain=MICROSOFT, attributes=attributes)
    return _with_bias(site, output, bias)


def _with_bias(site: _Site, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    return product if bias is None else site.add("Add", [product, bias], suffix="biased")


def _bias(site: _Site, linears: Sequence[Linear]) -> ir.Value | None:
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return site.constant("bias", _float(torch.cat([bias.detach() for bias in biases]))) if biases else None


def _lower_embedding(editor: GraphEditor, node: ir.Node, modules: Mapping[str, nn.Module]) -> None:
    name = module_of(node)
    table = modules[name]
    site = _Site(editor, node, node.inputs[0], name)
    if isinstance(table, QuantizedEmbedding):
        weight = table.quantized_weight()
        if table.scheme.bits != 8 or table.scheme.group_size is not None or not table.scheme.symmetric:
            raise UnsupportedError(
                f"module '{name}': found an embedding table in {table.scheme}; onnx export has symmetric 8-bit codes "
                "with one scale a row. Quantize it so (embeddings = 8 without embeddings_group_size), or exclude it."
            )
        wide = []
        for what, tensor in (("codes", weight.codes), ("scales", weight.scales)):
            matrix = site.constant(what, tensor.numpy())
            rows = site.add("Gather", [matrix, site.inputs], suffix=f"{what}_of_ids", dtype=matrix.dtype)
            wide.append(site.add("Cast", [rows], suffix=f"{what}_widened", **_TO_FLOAT))
        editor.replace(node, site.add("Mul", wide, suffix="rows"))
        return
    matrix = site.constant("weight", _float(table.get_parameter("weight").detach()))
    editor.replace(node, site.add("Gather", [matrix, site.inputs], suffix="rows"))


def _lower_gelu(editor: GraphEditor, node: ir.Node, opset: int) -> None:
    """Writes a Gelu as one operator: ONNX's own where the operator set has it, else the runtime's."""
    tanh = node.op_type == "GeluTanh"
    if not node.domain:
        approximate = node.attributes.get("approximate")
        tanh = approximate is not None and approximate.as_string() == "tanh"
    if opset >= _GELU_OPSET:
        domain, operator, attributes = "", "Gelu", {"approximate": "tanh" if tanh else "none"}
    else:
        domain, operator, attributes = MICROSOFT, "FastGelu" if tanh else "Gelu", {}
    name = editor.unique(f"{module_of(node) if 'module' in node.attributes else 'gelu'}.output")
    output = editor.add(node, operator, [node.inputs[0]], domain=domain, attributes=attributes, name=name)
    editor.replace(node, output)


def _linear(module: nn.Module) -> Linear:
    if not isinstance(module, (nn.Linear, QuantizedLinear)):
        raise UnsupportedError(f"found {type(module).__name__}, expected a linear.")
    return module


def _joined_name(names: Sequence[str]) -> str:
    """Returns `layer.0.query+key+value` for `layer.0.query`, `layer.0.key` and `layer.0.value`."""
    parts = [name.rpartition(".") for name in names]
    prefix = parts[0][0]
    if any(part[0] != prefix for part in parts):
        return "+".join(names)
    return f"{prefix}." + "+".join(part[2] for part in parts) if prefix else "+".join(names)


def _float(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().contiguous().numpy()


_TO_FLOAT = {"attributes": {"to": int(ir.DataType.FLOAT)}}
