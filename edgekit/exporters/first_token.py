"""Computes the last layer for the first token alone where the head reads no other token.

Classifiers of the BERT family look at the first token of the last hidden states only. What is computed row by row
before that (output projection, feed-forward, norms, queries) is then needed for that row only; keys and values are
needed for all. In float this is exact. A dynamically quantized linear takes its input's range over the rows that are
computed: `reference.py` tells the torch model which linears those are, so that both compute the same.

Requires a graph of `tracing`, before lowering. Ensures the same logits.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from edgekit.exporters.graph import GraphEditor, constant_of, dimensions

# Operators that compute each row from the same row of their inputs: type to the inputs that have rows.
_ELEMENTWISE = {"Add", "Sum", "Sub", "Mul", "Div", "Gelu", "GeluTanh", "Tanh", "Relu", "Sigmoid", "Erf", "Pow", "Neg"}


def keep_first_token(graph: ir.Graph) -> list[str]:
    """Narrows, in place, what only the first token's row is needed of; returns the names of the linears narrowed."""
    narrowed: dict[ir.Node, list[int]] = {}
    shared = _shared_modules(graph)
    for node in reversed(list(graph)):
        # The torch reference narrows a module wherever it is used, so one that several layers share stays whole.
        rows = [] if _module_of(node) in shared else _row_inputs(node)
        if rows and all(_only_first_needed(output, narrowed) for output in node.outputs):
            narrowed[node] = rows
    editor = GraphEditor(graph)
    sliced: dict[ir.Value, ir.Value] = {}
    modules = []
    for node in reversed(narrowed):
        for index in narrowed[node]:
            value = node.inputs[index]
            if value is not None and value.producer() not in narrowed:
                if value not in sliced:
                    sliced[value] = _first_row(editor, node, value)
                node.replace_input_with(index, sliced[value])
        for output in node.outputs:
            output.shape = _one_row(output)
        if node.op_type == "Linear":
            modules.append(node.attributes["module"].as_string())
    return sorted(set(modules))


def _module_of(node: ir.Node) -> str | None:
    """Returns the name of the linear that a placeholder stands for."""
    return node.attributes["module"].as_string() if node.op_type == "Linear" else None


def _shared_modules(graph: ir.Graph) -> set[str | None]:
    """Returns the linears that more than one node stands for, as in ALBERT, whose layers are one."""
    counts = Counter(_module_of(node) for node in graph if node.op_type == "Linear")
    return {name for name, count in counts.items() if count > 1}


def _only_first_needed(value: ir.Value, narrowed: dict[ir.Node, list[int]]) -> bool:
    uses = value.uses()
    return (
        bool(uses)
        and not value.is_graph_output()
        and all(_selects_first(user) if user not in narrowed else index in narrowed[user] for user, index in uses)
    )


def _selects_first(node: ir.Node) -> bool:
    """Returns whether `node` is `hidden[:, 0]`."""
    if node.op_type != "Gather" or node.attributes["axis"].as_int() != 1:
        return False
    position = constant_of(node.inputs[1])
    return position is not None and position.ndim == 0 and int(position) == 0


def _row_inputs(node: ir.Node) -> list[int]:
    """Returns the inputs whose rows give the output's rows one to one; empty when `node` mixes rows."""
    shape = dimensions(node.outputs[0])
    if shape is None or len(shape) != 3 or not isinstance(shape[1], str):
        return []
    if node.op_type in ("Linear", "LayerNormalization"):
        return [0] if node.op_type == "Linear" or node.attributes["axis"].as_int() in (-1, 2) else []
    if node.op_type == "Split":
        return [0] if node.attributes["axis"].as_int() in (-1, 2) else []
    if node.op_type == "MultiHeadAttention":
        has_bias = len(node.inputs) > 5 and node.inputs[5] is not None
        return [0, 5] if has_bias else [0]
    if node.op_type not in _ELEMENTWISE:
        return []
    inputs = [(index, dimensions(value)) for index, value in enumerate(node.inputs) if value is not None]
    rows = [index for index, sizes in inputs if sizes is not None and len(sizes) > 1 and sizes[-2] == shape[1]]
    others = [sizes for index, sizes in inputs if index not in rows]
    broadcast = all(sizes is not None and (len(sizes) < 2 or sizes[-2] == 1) for sizes in others)
    return rows if broadcast else []


def _first_row(editor: GraphEditor, before: ir.Node, value: ir.Value) -> ir.Value:
    """Returns `value[..., :1, :]`."""
    start, end, axes = editor.integers(0), editor.integers(1), editor.integers(-2)
    row = editor.add(before, "Slice", [value, start, end, axes], name=f"{value.name}_first_token")
    row.type, row.shape = value.type, _one_row(value)
    return row


def _one_row(value: ir.Value) -> ir.Shape:
    sizes = list(value.shape or ())
    sizes[-2] = 1
    return ir.Shape(sizes)
