"""Lowers the placeholders of `substitution` to the operators that runtimes have, code for code.

    linear, float                           MatMul + Add
    linear, int8 by channel, dynamic        com.microsoft::DynamicQuantizeMatMul
    linear, int8 by channel, float          the codes, widened and scaled at load, + MatMul
    linear, 8, 4, 3 or 2 bits by group      com.microsoft::MatMulNBits (3 bits in the room of 4)
    linear, 4, 3 or 2 bits by channel       the same, the scale repeated; float activations only
    linear on codes, where it was chosen    another of `linear_kernels.py`
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
from edgekit.exporters.linear_groups import Linear, LinearGroup, linear_groups
from edgekit.exporters.linear_kernels import KERNELS, usual_lowering
from edgekit.exporters.lowering_names import Lowering
from edgekit.exporters.packing import Kernel, concatenate
from edgekit.exporters.rms_norm import find_rms_norm
from edgekit.exporters.standard_lowering import standard_kernel, standard_table
from edgekit.exporters.substitution import DOMAIN, MICROSOFT
from edgekit.exporters.tables import lower_embedding, shared_table
from edgekit.models.quantized import Scheme, weight_matrix

_GELU_OPSET = 20


@dataclass(frozen=True)
class StandardOperators:
    """Asks for operators of the ONNX standard alone."""

    round_activations: bool
    """False: dynamic schemes, too, are decoded and multiplied as floats, as runtimes with no such operators do."""
    gather_codes: bool = True
    """Tables of 8 bits: look up codes and scales, and multiply; False: look up what the runtime decodes."""


def lower(
    model: ir.Model,
    modules: Mapping[str, nn.Module],
    standard: StandardOperators | None = None,
    chosen: Mapping[str, Lowering] | None = None,
) -> None:
    """Replaces every placeholder, in place; `modules` are the model's by name.

    `chosen` says for linears on codes how they are written, by the name of the first of those that become one matmul;
    the others are written as their scheme asks for.

    Raises:
        UnsupportedError: no operator computes with a module's scheme, or, in the standard, with the model at all.
    """
    editor = GraphEditor(model.graph)
    opset = int(model.opset_imports[""])
    for group in linear_groups(model.graph, modules):
        _lower_linears(editor, group, modules, _kernel(group, standard, chosen or {}))
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


def _lower_linears(
    editor: GraphEditor, group: LinearGroup, modules: Mapping[str, nn.Module], kernel: Kernel | None
) -> None:
    """Writes a group as one matmul; `kernel` is for codes, None for floats."""
    nodes, names, linears = group.nodes, group.names, group.linears
    site = Site(editor, nodes[0], nodes[0].inputs[0], group.name)
    bias = _bias(site, linears)
    if kernel is not None:
        output = kernel(site, concatenate([linear.weight for linear in group.coded]), bias)
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


def _kernel(group: LinearGroup, standard: StandardOperators | None, chosen: Mapping[str, Lowering]) -> Kernel | None:
    if not group.coded:
        return None
    scheme: Scheme = group.coded[0].scheme
    if standard is not None:
        return standard_kernel(scheme, group.name, round_activations=standard.round_activations)
    return KERNELS[chosen.get(group.names[0]) or usual_lowering(scheme, group.name)]


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


def _float(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().contiguous().numpy()
