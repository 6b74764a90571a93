"""Replaces the placeholders of a trace by operators that onnxruntime has, with the codes of the model as they are.

Linears that read the same value are written as one: output channels are coded one by one, so joining them changes no
number. It decides no code; what an operator cannot hold is refused.

| linear | operator |
|---|---|
| float32 | MatMul, Add |
| 8 bits by channel, dynamic int8 activations | com.microsoft::DynamicQuantizeMatMul |
| 8 or 4 bits by group, dynamic int8 activations | com.microsoft::MatMulNBits, accuracy level 4 |
| 4 bits by group, float activations | com.microsoft::MatMulNBits, accuracy level 1 |
| 8 bits, float activations | Cast, Mul (folded when the model is loaded), MatMul |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import GraphEditor
from edgekit.exporters.substitution import DOMAIN, MICROSOFT
from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, Scheme

# The first operator set with Gelu; before it, onnxruntime's own is used.
_GELU_OPSET = 20
_ACCURACY = {"float": 1, "dynamic-int8": 4}


@dataclass(frozen=True)
class _Site:
    """Where linears are lowered: the nodes that share an input, and their modules in the same order."""

    nodes: list[ir.Node]
    modules: list[nn.Linear | QuantizedLinear]
    names: list[str]

    @property
    def input(self) -> ir.Value:
        """What all of them multiply."""
        value = self.nodes[0].inputs[0]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        """A name for all: `layer.0.attention.query+key+value`."""
        parents = {name.rpartition(".")[0] for name in self.names}
        if len(parents) == 1 and "" not in parents:
            return f"{parents.pop()}.{'+'.join(name.rpartition('.')[2] for name in self.names)}"
        return "+".join(self.names)


def lower(model: ir.Model, modules: Mapping[str, nn.Module], *, opset: int) -> None:
    """Replaces every placeholder, in place.

    Raises:
        UnsupportedError: a scheme that no operator holds, naming the module.
    """
    editor = GraphEditor(model.graph)
    _lower_linears(editor, modules)
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        if node.op_type == "Embedding":
            name = node.attributes["module"].as_string()
            _lower_embedding(editor, node, name, modules[name])
        else:
            _lower_activation(editor, node, opset)
    used = {node.domain for node in model.graph}
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({"": opset} | ({MICROSOFT: 1} if MICROSOFT in used else {}))


def _lower_linears(editor: GraphEditor, modules: Mapping[str, nn.Module]) -> None:
    sites: dict[tuple[ir.Value | None, Scheme | None, bool], _Site] = {}
    for node in editor.graph:
        if node.domain == DOMAIN and node.op_type == "Linear":
            name = node.attributes["module"].as_string()
            module = modules[name]
            assert isinstance(module, (nn.Linear, QuantizedLinear))
            scheme = module.scheme if isinstance(module, QuantizedLinear) else None
            site = sites.setdefault((node.inputs[0], scheme, module.bias is None), _Site([], [], []))
            site.nodes.append(node)
            site.modules.append(module)
            site.names.append(name)
    for (_, scheme, _), site in sites.items():
        if scheme is None:
            joined = _lower_float(editor, site)
        elif scheme.activations == "float" and scheme.bits == 8:
            joined = _lower_weight_only(editor, site, scheme)
        elif scheme.group_size is not None:
            joined = _lower_groups(editor, site, scheme)
        else:
            joined = _lower_dynamic(editor, site, scheme)
        _part(editor, site, joined)


def _part(editor: GraphEditor, site: _Site, joined: ir.Value) -> None:
    """Gives each linear of a site its share of the joint output."""
    if len(site.nodes) == 1:
        editor.replace(site.nodes[0], joined)
        return
    sizes = editor.integers(*(module.out_features for module in site.modules))
    names = [f"{name}.output" for name in site.names]
    parts = editor.add_many(site.nodes[0], "Split", [joined, sizes], attributes={"axis": -1}, names=names)
    for node, part in zip(site.nodes, parts, strict=True):
        editor.replace(node, part)


def _lower_float(editor: GraphEditor, site: _Site) -> ir.Value:
    weights = torch.cat([module.weight for module in site.modules if isinstance(module, nn.Linear)])
    weight = editor.constant(f"{site.name}.weight", _array(weights.T))
    return _add_bias(editor, site, editor.add(site.nodes[0], "MatMul", [site.input, weight], name=f"{site.name}.matmul"))


def _add_bias(editor: GraphEditor, site: _Site, product: ir.Value) -> ir.Value:
    bias = _bias(editor, site)
    if bias is None:
        return product
    return editor.add(site.nodes[0], "Add", [product, bias], name=f"{site.name}.add")


def _bias(editor: GraphEditor, site: _Site) -> ir.Value | None:
    biases = [module.bias for module in site.modules if module.bias is not None]
    return editor.constant(f"{site.name}.bias", _array(torch.cat(biases))) if biases else None


def _lower_dynamic(editor: GraphEditor, site: _Site, scheme: Scheme) -> ir.Value:
    if scheme.bits != 8:
        raise UnsupportedError(
            f"onnx: module '{site.names[0]}': {scheme.bits}-bit codes with one scale for each output channel have no "
            "operator. Quantize with a group size, or to 8 bits."
        )
    codes, scales, zero_points = _codes(site)
    inputs = [
        site.input,
        editor.constant(f"{site.name}.codes", codes.T),
        editor.constant(f"{site.name}.scales", scales[:, 0].astype(np.float32)),
        None if zero_points is None else editor.constant(f"{site.name}.zero_points", zero_points[:, 0]),
        _bias(editor, site),
    ]
    while inputs[-1] is None:
        inputs.pop()
    return editor.add(site.nodes[0], "DynamicQuantizeMatMul", inputs, domain=MICROSOFT, name=f"{site.name}.matmul")


def _lower_groups(editor: GraphEditor, site: _Site, scheme: Scheme) -> ir.Value:
    codes, scales, zero_points = _codes(site)
    size = scheme.group_size
    if size is None:
        return _lower_dynamic(editor, site, scheme)
    if size < 16 or size & (size - 1):
        raise UnsupportedError(
            f"onnx: module '{site.names[0]}': MatMulNBits has group sizes that are powers of two from 16 on, found "
            f"{size}. Quantize with group_size = 32, 64 or 128."
        )
    columns, rows = codes.shape[1], codes.shape[0]
    unsigned = codes.astype(np.int16) + (1 << (scheme.bits - 1) if scheme.symmetric else 0)
    # The last group is filled with zero points; the kernel multiplies them with zeros.
    fill = 1 << (scheme.bits - 1)
    unsigned = np.pad(unsigned, ((0, 0), (0, -columns % size)), constant_values=fill).astype(np.uint8)
    packed = unsigned.reshape(rows, -1, size)
    points = zero_points
    if scheme.bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << 4)
        if points is not None:
            points = np.pad(points, ((0, 0), (0, points.shape[1] % 2)))
            points = points[:, 0::2] | (points[:, 1::2] << 4)
    inputs = [
        site.input,
        editor.constant(f"{site.name}.codes", packed),
        editor.constant(f"{site.name}.scales", scales.astype(np.float32).ravel()),
    ]
    if points is not None:
        inputs.append(editor.constant(f"{site.name}.zero_points", points.ravel()))
    attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": size}
    attributes["accuracy_level"] = _ACCURACY[scheme.activations]
    product = editor.add(
        site.nodes[0], "MatMulNBits", inputs, domain=MICROSOFT, attributes=attributes, name=f"{site.name}.matmul"
    )
    return _add_bias(editor, site, product)


def _lower_weight_only(editor: GraphEditor, site: _Site, scheme: Scheme) -> ir.Value:
    """Stores 8-bit codes that onnxruntime makes float32 once, at load: as exact, and faster than MatMulNBits there."""
    codes, scales, zero_points = _codes(site)
    columns, rows = codes.shape[1], codes.shape[0]
    size = scheme.group_size or columns
    groups = scales.shape[1]
    filled = np.pad(codes, ((0, 0), (0, groups * size - columns)))
    before, name = site.nodes[0], site.name
    # (in, out) as MatMul wants it, seen as (groups, size, out) for the scales
    value = editor.constant(f"{name}.codes", filled.T.reshape(groups, size, rows))
    value = editor.add(before, "Cast", [value], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}.cast")
    if zero_points is not None:
        points = editor.constant(f"{name}.zero_points", zero_points.T.reshape(groups, 1, rows).astype(np.float32))
        value = editor.add(before, "Sub", [value, points], name=f"{name}.center")
    scale = editor.constant(f"{name}.scales", scales.T.reshape(groups, 1, rows).astype(np.float32))
    value = editor.add(before, "Mul", [value, scale], name=f"{name}.scale")
    value = editor.add(before, "Reshape", [value, editor.integers(groups * size, rows)], name=f"{name}.flatten")
    if groups * size != columns:
        bounds = [editor.integers(0), editor.integers(columns), editor.integers(0)]
        value = editor.add(before, "Slice", [value, *bounds], name=f"{name}.trim")
    return _add_bias(editor, site, editor.add(before, "MatMul", [site.input, value], name=f"{name}.matmul"))


def _codes(site: _Site) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns codes (out, in), scales (out, groups) and zero points of all linears of a site, one after another."""
    weights = [module.weight for module in site.modules if isinstance(module, QuantizedLinear)]
    codes = _array(torch.cat([weight.codes for weight in weights]))
    scales = _array(torch.cat([weight.scales for weight in weights]))
    points = [weight.zero_points for weight in weights if weight.zero_points is not None]
    return codes, scales, _array(torch.cat(points)) if points else None


def _lower_embedding(editor: GraphEditor, node: ir.Node, name: str, module: nn.Module) -> None:
    ids = node.inputs[0]
    if not isinstance(module, QuantizedEmbedding):
        assert isinstance(module, nn.Embedding)
        table = editor.constant(f"{name}.weight", _array(module.weight))
        editor.replace(node, editor.add(node, "Gather", [table, ids], name=f"{name}.gather"))
        return
    weight = module.quantized_weight()
    table = editor.constant(f"{name}.codes", _array(weight.codes))
    scales = editor.constant(f"{name}.scales", _array(weight.scales).astype(np.float32))
    codes = editor.add(node, "Gather", [table, ids], name=f"{name}.gather")
    codes.type = ir.TensorType(ir.DataType.INT8)
    wide = editor.add(node, "Cast", [codes], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}.cast")
    scale = editor.add(node, "Gather", [scales, ids], name=f"{name}.gather_scales")
    editor.replace(node, editor.add(node, "Mul", [wide, scale], name=f"{name}.scale"))


def _lower_activation(editor: GraphEditor, node: ir.Node, opset: int) -> None:
    """Writes Gelu as one operator: exact, or the tanh approximation (onnxruntime's FastGelu)."""
    name = node.attributes["module"].as_string()
    tanh = node.op_type == "GeluTanh"
    operator, domain = ("FastGelu", MICROSOFT) if tanh else ("Gelu", "" if opset >= _GELU_OPSET else MICROSOFT)
    label = f"{name}.{node.outputs[0].name}"
    editor.replace(node, editor.add(node, operator, node.inputs, domain=domain, name=label))


def _array(tensor: torch.Tensor | Sequence[float]) -> np.ndarray:
    return np.ascontiguousarray(torch.as_tensor(tensor).detach().cpu().numpy())
