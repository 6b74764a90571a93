"""Edits an onnx-ir graph: constants by name, new nodes with typed outputs, replacements that keep output names.

It knows nothing of any operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Attributes = Mapping[str, int | float | str | Sequence[int]]


class GraphEditor:
    """Adds to one graph; constants of one name are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        """Edits `graph` in place."""
        self.graph = graph
        self._names = {value.name for node in graph for value in node.outputs}

    def unique(self, name: str) -> str:
        """Returns `name`, numbered when a node has it already (a module that is applied more than once)."""
        found, count = name, 1
        while found in self._names:
            count += 1
            found = f"{name}_{count}"
        self._names.add(found)
        return found

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Returns the initializer called `name`, made from `array` when it is not there yet."""
        if name not in self.graph.initializers:
            array = np.ascontiguousarray(array) if array.ndim else array
            tensor = ir.tensor(array, name=name)
            self.graph.register_initializer(
                ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
            )
        return self.graph.initializers[name]

    def integers(self, *values: int) -> ir.Value:
        """Returns a one-dimensional int64 constant."""
        name = "int64_" + "_".join(str(value).replace("-", "minus_") for value in values)
        return self.constant(name, np.array(values, dtype=np.int64))

    def scalar(self, value: int) -> ir.Value:
        """Returns an int64 constant without dimensions."""
        return self.constant(f"int64_scalar_{value}".replace("-", "minus_"), np.array(value, dtype=np.int64))

    def add(  # noqa: PLR0913 - the parts of a node
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        attributes: Attributes | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        name: str,
    ) -> ir.Value:
        """Inserts a node with one output of type `dtype`, which is called as the node, and returns the output."""
        output = self.add_many(before, operator, inputs, domain=domain, attributes=attributes, names=[name])[0]
        output.type = ir.TensorType(dtype)
        return output

    def add_many(  # noqa: PLR0913 - the parts of a node
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        attributes: Attributes | None = None,
        names: Sequence[str],
    ) -> list[ir.Value]:
        """Inserts a node with one output for each of `names`, and returns the outputs (typed float32)."""
        outputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names]
        node = ir.node(operator, inputs, attributes, domain=domain, outputs=outputs, name=names[0])
        self.graph.insert_before(before, node)
        return outputs

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Removes `node`, whose only output `value` stands for from now on, under the same name and shape."""
        old = node.outputs[0]
        value.type, value.shape = old.type, old.shape
        if old.is_graph_output():
            name, old.name = old.name, f"{old.name}_replaced"
            value.name = name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


@dataclass(frozen=True)
class Site:
    """Where the operators for one module go: before a node, on a value, under a name."""

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

    def biased(self, product: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Returns the product with the bias added, if there is one."""
        return product if bias is None else self.add("Add", [product, bias], suffix="biased")


def dimensions(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Returns the shape with symbols as strings, or None when it is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Returns the content of a constant, or None when `value` is none."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def module_of(node: ir.Node) -> str:
    """Returns the name of the module that a placeholder stands for."""
    return node.attributes["module"].as_string()
