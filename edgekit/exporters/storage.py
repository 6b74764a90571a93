"""Stores weights that are float16 values as float16; a cast gives the float32 that is computed with.

onnxruntime folds the cast of a weight when it loads the model, so that it costs time once. Requires a lowered graph.
Ensures the same values.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.exporters.graph import GraphEditor, constant_of

# Smaller constants stay as they are: a cast weighs more than it saves.
_MINIMUM_SIZE = 256


def store_float16(graph: ir.Graph) -> None:
    """Rewrites every large float32 constant whose values float16 holds exactly, in place."""
    editor = GraphEditor(graph)
    first = next(iter(graph))
    for value in list(graph.initializers.values()):
        array = constant_of(value)
        if array is None or array.dtype != np.float32 or array.size < _MINIMUM_SIZE:
            continue
        halves = array.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), array):
            stored = editor.constant(f"{value.name}.float16", halves)
            for user, index in list(value.uses()):
                if user.op_type == "Gather" and index == 0:
                    _cast_after(editor, user, stored)
            if value.uses():
                attributes = {"to": ir.DataType.FLOAT.value}
                wide = editor.add(first, "Cast", [stored], attributes=attributes, name=f"{value.name}.float32")
                value.replace_all_uses_with(wide)
            del graph.initializers[value.name]


def _cast_after(editor: GraphEditor, gather: ir.Node, stored: ir.Value) -> None:
    """Gathers float16 rows and casts those: the table itself never becomes float32."""
    rows = editor.add(gather, "Gather", [stored, gather.inputs[1]], name=f"{gather.name}.float16")
    rows.type = ir.TensorType(ir.DataType.FLOAT16)
    wide = editor.add(
        gather, "Cast", [rows], attributes={"to": ir.DataType.FLOAT.value}, name=f"{gather.name}.float32"
    )
    editor.replace(gather, wide)
