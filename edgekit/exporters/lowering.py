"""Lowers the placeholders of `substitution` to the operators that runtimes have, code for code.

    linear, float                           MatMul + Add
    linear, int8 by channel, dynamic        com.microsoft::DynamicQuantizeMatMul
    linear, int8 by channel, float          the codes, widened and scaled at load, + MatMul
    linear, 8, 4, 3 or 2 bits by group      com.microsoft::MatMulNBits (3 bits in the room of 4)
    linear, 4, 3 or 2 bits by channel       the same, the scale repeated; float activations only
    root-mean-square norm                   SimplifiedLayerNormalization
    embedding                               see `tables.py`

With `StandardOperators`, codes are lowered as `standard_lowering.py` says, and nothing is of `com.microsoft`.

Linears that read one input in one way become one matmul: query, key and value of an attention, gate and value of a
gated feed-forward. Requires a graph of `tracing`. Ensures that no placeholder is left and that every code is stored as
it is; no code is chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import GraphEditor, Site, module_of
from edgekit.exporters.packing import Kernel, concatenate, nbits_matrix, spread_scales
from edgekit.exporters.rms_norm import find_rms_norm
from edgekit.exporters.standard_lowering import standard_kernel, standard_table
from edgekit.exporters.substitution import DOMAIN, MICROSOFT
from edgekit.exporters.tables import lower_embedding, shared_table
from edgekit.models.quantized import QuantizedLinear, QuantizedTensor, Scheme, weight_matrix

_GELU_OPSET = 20
_EXACT_ACTIVATIONS, _INT8_ACTIVATIONS = 1, 4  # MatMulNBits' accuracy_level: float32, int8

Linear = nn.Module  # nn.Linear, transformers' Conv1D, or QuantizedLinear


@dataclass(frozen=True)
class StandardOperators:
    """Asks for operators of the ONNX standard alone."""

    round_activations: bool
    """False: dynamic schemes, too, are decoded and multiplied as floats, as runtimes with no such operators do."""
    gather_codes: bool = True
    """Tables of 8 bits: look up codes and scales, and multiply; False: look up what the runtime decodes."""


def lower(model: ir.Model, modules: Mapping[str, nn.Module], standard: StandardOperators | None = None) -> None:
    """Replaces every placeholder, in place; `modules` are the model's by name.

    Raises:
        UnsupportedError: no operator computes with a module's scheme, or, in the standard, with the model at all.
    """
    editor = GraphEditor(model.graph)
    opset = int(model.opset_imports[""])
    for group in _linear_groups(model.graph, modules):
        _lower_linears(editor, group, modules, standard)
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == "Embedding":
            look_up = partial(standard_table, gather_codes=standard.gather_codes) if standard else None
            lower_embedding(editor, node, modules, look_up)
        elif node.domain == DOMAIN and node.op_type == "RmsNorm":
            _lower_rms_norm(editor, node, modules)
        elif node.domain == DOMAIN or (node.op_type == "Gelu" and not node.domain):
            _lower_gelu(editor, node, opset)
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports[MICROSOFT] = 1
    if standard is not None:
        _require_standard(model.graph)


def _require_standard(graph: ir.Graph) -> None:
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in graph if node.domain})
    if foreign:
        raise UnsupportedError(
            f"onnx in the standard dialect: found {', '.join(foreign)}, expected operators of the standard alone. "
            "Export this model in the dialect onnxruntime."
        )


def _linear_groups(graph: ir.Graph, modules: Mapping[str, nn.Module]) -> list[list[ir.Node]]:
    """Returns the linears that read the same input in the same way, together, in the order of the graph."""
    groups: dict[tuple[int, Scheme | None, bool], list[ir.Node]] = {}
    for node in graph:
        if node.domain == DOMAIN and node.op_type == "Linear":
            module = modules[module_of(node)]
            key = (id(node.inputs[0]), getattr(module, "scheme", None), _has_bias(module))
            groups.setdefault(key, []).append(node)
    return list(groups.values())


def _lower_linears(
    editor: GraphEditor,
    nodes: Sequence[ir.Node],
    modules: Mapping[str, nn.Module],
    standard: StandardOperators | None,
) -> None:
    names = [module_of(node) for node in nodes]
    linears = [modules[name] for name in names]
    site = Site(editor, nodes[0], nodes[0].inputs[0], _joined_name(names))
    bias = _bias(site, linears)
    coded = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    if coded:  # all of a group have one scheme
        kernel = _kernel(coded[0].scheme, site.name, standard)
        output = kernel(site, concatenate([linear.weight for linear in coded]), bias)
    else:
        output = _float_matmul(site, linears, bias, modules)
    if len(nodes) == 1:
        editor.replace(nodes[0], output)
        return
    sizes = editor.integers(*(_width(linear) for linear in linears))
    parts = editor.add_many(
        nodes[0],
        "Split",
        [output, sizes],
        attributes={"axis": -1},
        names=[editor.unique(f"{name}.output") for name in names],
    )
    for node, part in zip(nodes, parts, strict=True):
        editor.replace(node, part)


def _float_matmul(
    site: Site, linears: Sequence[Linear], bias: ir.Value | None, modules: Mapping[str, nn.Module]
) -> ir.Value:
    floats = [weight_matrix(linear) for linear in linears]
    table = shared_table(linears[0], modules) if len(linears) == 1 else None
    if table is not None:  # the table is kept as it is, (out, in), and read in place
        matrix = site.editor.constant(f"{table}.weight", _float(floats[0]))
        options = {"domain": MICROSOFT, "attributes": {"transB": 1}}
        return site.biased(site.add("FusedMatMul", [site.inputs, matrix], suffix="matmul", **options), bias)
    matrix = site.constant("weight", _float(torch.cat(floats).T))
    return site.biased(site.add("MatMul", [site.inputs, matrix], suffix="matmul"), bias)


def _kernel(scheme: Scheme, name: str, standard: StandardOperators | None) -> Kernel:
    if standard is not None:
        return standard_kernel(scheme, name, round_activations=standard.round_activations)
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


def _dynamic_int8(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
    """Rounds the input to 8 bits with one scale, multiplies integers; codes are stored `(in, out)`."""
    codes = site.constant("codes", weight.codes.T.contiguous().numpy())
    scales = site.constant("scales", _float(weight.scales[:, 0]))
    zeros = weight.zero_points
    zero_points = None if zeros is None else site.constant("zero_points", zeros[:, 0].contiguous().numpy())
    inputs = [site.inputs, codes, scales, zero_points, bias]
    return site.add("DynamicQuantizeMatMul", inputs, suffix="matmul", domain=MICROSOFT)


def _widened(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
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
    return site.biased(site.add("MatMul", [site.inputs, matrix], suffix="matmul"), bias)


def _nbits(site: Site, weight: QuantizedTensor, bias: ir.Value | None) -> ir.Value:
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
    return site.biased(output, bias)


def _bias(site: Site, linears: Sequence[Linear]) -> ir.Value | None:
    biases = [linear.bias.detach() for linear in linears if isinstance(linear.bias, torch.Tensor)]
    return site.constant("bias", _float(torch.cat(biases))) if biases else None


def _lower_rms_norm(editor: GraphEditor, node: ir.Node, modules: Mapping[str, nn.Module]) -> None:
    """Writes a root-mean-square norm as the operator that onnxruntime has for it."""
    name = module_of(node)
    norm = find_rms_norm(modules[name])
    if norm is None:
        raise UnsupportedError(
            f"module '{name}': found {type(modules[name]).__name__}, expected a root-mean-square norm."
        )
    scale = editor.constant(f"{name}.weight", norm.scale.numpy())
    attributes = {"axis": -1, "epsilon": norm.epsilon, "stash_type": 1}
    output = editor.add(
        node,
        "SimplifiedLayerNormalization",
        [node.inputs[0], scale],
        attributes=attributes,
        name=editor.unique(f"{name}.output"),
    )
    editor.replace(node, output)


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


def _width(linear: nn.Module) -> int:
    """Returns the number of outputs."""
    return int(linear.nf if hasattr(linear, "nf") else linear.out_features)  # type: ignore[arg-type]


def _has_bias(linear: nn.Module) -> bool:
    return isinstance(linear.bias, torch.Tensor)


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
