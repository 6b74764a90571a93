"""Rewrites of a decoder's graph: query, key and value as one input of the attention, logits of the last tokens only.

Requires a graph of `decoder_tracing`. Ensures the same values for the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.exporters.graph import GraphEditor, constant_of, dimensions, module_of
from edgekit.runtimes.onnxruntime_generation import LOGITS_TO_KEEP

_QUERY_KEY_VALUE = 3


def keep_last_logits(graph: ir.Graph, head: str, default: int) -> None:
    """Lets the linear called `head` see the last tokens alone, in place; a caller may ask for more.

    The number is an input with a default: runtimes that do not know it leave it out. A single one is the last token
    that is no padding, on whichever side a row is padded.

    Raises:
        UnsupportedError: the graph has no such linear, or several.
    """
    nodes = [node for node in graph if node.op_type == "Linear" and module_of(node) == head]
    hidden = nodes[0].inputs[0] if len(nodes) == 1 else None
    if hidden is None:
        raise UnsupportedError(f"onnx: found the head '{head}' {len(nodes)} times in the graph, expected it once.")
    editor = GraphEditor(graph)
    keep = editor.constant(LOGITS_TO_KEEP, np.array(default, dtype=np.int64))
    graph.inputs.append(keep)
    last = _last_rows(editor, nodes[0], hidden, keep)
    sizes = list(hidden.shape or ())
    # onnxruntime-genai looks for a declared 1 to learn that it gets one row.
    sizes[1] = default if default == 1 else ir.SymbolicDim("logits_length")
    last.shape = ir.Shape(sizes)
    nodes[0].replace_input_with(0, last)
    for value in _all_after(nodes[0]):
        if value.shape is not None and len(value.shape) == len(sizes):
            value.shape = ir.Shape([value.shape[0], sizes[1], *list(value.shape)[2:]])


def _last_rows(editor: GraphEditor, before: ir.Node, hidden: ir.Value, keep: ir.Value) -> ir.Value:
    """Returns the rows of `hidden` (B, S, H) that get logits, (B, kept, H)."""
    mask = next(value for value in editor.graph.inputs if value.name == "attention_mask")

    def add(operator: str, inputs: list[ir.Value | None], name: str, **attributes: Sequence[int] | int) -> ir.Value:
        dtype = ir.DataType.BOOL if operator == "Equal" else ir.DataType.INT64
        return editor.add(before, operator, inputs, attributes=attributes, dtype=dtype, name=f"kept_rows.{name}")

    zero, one = editor.scalar(0), editor.scalar(1)
    length = add("Squeeze", [add("Shape", [hidden], "shape", start=1, end=2)], "length")
    total = add("Squeeze", [add("Shape", [mask], "mask_shape", start=1, end=2)], "total")
    count = add("Where", [add("Equal", [keep, zero], "all"), length, keep], "count")
    order = add("Range", [add("Sub", [length, count], "first"), length, one], "order")
    # Padding after the text: what lies behind the last one of the mask.
    places = add("Range", [one, add("Add", [total, one], "end"), one], "places")
    ends = add("ReduceMax", [add("Mul", [mask, places], "marked"), editor.integers(1)], "ends", keepdims=1)
    single = add("Cast", [add("Equal", [keep, one], "single")], "is_single", to=int(ir.DataType.INT64))
    shift = add("Mul", [add("Sub", [total, ends], "padding"), single], "shift")
    index = add("Unsqueeze", [add("Sub", [order, shift], "index"), editor.integers(-1)], "indices")
    return editor.add(before, "GatherND", [hidden, index], attributes={"batch_dims": 1}, name="last_hidden_states")


def _all_after(node: ir.Node) -> list[ir.Value]:
    """Returns every value that is computed from the output of `node`, that output first."""
    values = list(node.outputs)
    for value in values:
        values.extend(output for user in value.consumers() for output in user.outputs if output not in values)
    return values


def pack_query_key_value(graph: ir.Graph) -> None:
    """Hands GroupQueryAttention one packed tensor where query, key and value are just its three parts, in place."""
    for node in list(graph):
        if node.op_type == "GroupQueryAttention":
            parts = node.inputs[:_QUERY_KEY_VALUE]
            packed = _whole_of_split(parts) or _whole_of_slices(parts)
            if packed is not None:
                node.replace_input_with(0, packed)
                node.replace_input_with(1, None)
                node.replace_input_with(2, None)


def _whole_of_split(parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """Returns what one Split along the features parts into just `parts`, in their order."""
    producer = parts[0].producer() if parts[0] is not None else None
    if producer is None or producer.op_type != "Split" or producer.attributes["axis"].as_int() not in (-1, 2):
        return None
    return producer.inputs[0] if list(producer.outputs) == list(parts) else None


def _whole_of_slices(parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """Returns what three Slices along the features part into `parts`, in their order and without a gap."""
    source: ir.Value | None = None
    position = 0
    for part in parts:
        producer = part.producer() if part is not None else None
        if producer is None or producer.op_type != "Slice" or len(producer.inputs) < 4:
            return None
        bounds = [constant_of(value) for value in producer.inputs[1:5]]
        start, end, axis = (
            int(bound.item()) if bound is not None and bound.size == 1 else None for bound in bounds[:3]
        )
        step = 1 if len(bounds) < 4 or bounds[3] is None else int(bounds[3].item())
        if (
            start != position
            or axis not in (-1, 2)
            or step != 1
            or (source is not None and producer.inputs[0] is not source)
        ):
            return None
        source, position = producer.inputs[0], _width(part)
        position += start
        if position == 0 or end is None:
            return None
    return source if source is not None and _width(source) == position else None


def _width(value: ir.Value | None) -> int:
    """Returns the number of features, 0 when it is unknown."""
    sizes = dimensions(value)
    return sizes[-1] if sizes and isinstance(sizes[-1], int) else 0
