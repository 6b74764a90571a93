"""Which linears of a traced graph become one matmul: those that read the same input in the same way.

It looks at placeholders of `substitution`; what they are lowered to is `lowering.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn

from edgekit.exporters.graph import module_of
from edgekit.exporters.substitution import DOMAIN
from edgekit.models.quantized import QuantizedLinear, Scheme

Linear = nn.Module  # nn.Linear, transformers' Conv1D, or QuantizedLinear


@dataclass(frozen=True)
class LinearGroup:
    """Linears that read one input: query, key and value of an attention, or one linear alone."""

    nodes: list[ir.Node]
    """Their placeholders, in the order of the graph."""
    names: list[str]
    """Their modules' names."""
    linears: list[Linear]

    @property
    def coded(self) -> list[QuantizedLinear]:
        """Returns the linears where they hold codes, all of one scheme; empty where they hold floats."""
        return [linear for linear in self.linears if isinstance(linear, QuantizedLinear)]

    @property
    def name(self) -> str:
        """Returns what constants and nodes of the group are called."""
        return _joined_name(self.names)


def linear_groups(graph: ir.Graph, modules: Mapping[str, nn.Module]) -> list[LinearGroup]:
    """Returns the linears that read the same input in the same way, together, in the order of the graph."""
    groups: dict[tuple[int, Scheme | None, bool], list[ir.Node]] = {}
    for node in graph:
        if node.domain == DOMAIN and node.op_type == "Linear":
            module = modules[module_of(node)]
            key = (id(node.inputs[0]), getattr(module, "scheme", None), has_bias(module))
            groups.setdefault(key, []).append(node)
    made = []
    for nodes in groups.values():
        names = [module_of(node) for node in nodes]
        made.append(LinearGroup(nodes, names, [modules[name] for name in names]))
    return made


def has_bias(linear: Linear) -> bool:
    """Returns whether a linear adds a bias."""
    return isinstance(linear.bias, torch.Tensor)


def _joined_name(names: Sequence[str]) -> str:
    """Returns `layer.0.query+key+value` for `layer.0.query`, `layer.0.key` and `layer.0.value`."""
    parts = [name.rpartition(".") for name in names]
    prefix = parts[0][0]
    if any(part[0] != prefix for part in parts):
        return "+".join(names)
    return f"{prefix}." + "+".join(part[2] for part in parts) if prefix else "+".join(names)
