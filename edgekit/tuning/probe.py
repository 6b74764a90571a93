"""A small ONNX file of linears of one shape, written as the export writes them, and what torch makes of its inputs.

It takes `input_ids`, which are rows of a table of random activations, so that every runtime that runs classifiers runs
it; its `logits` are what the linears give for the first token. It knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.exporters.graph import GraphEditor
from edgekit.exporters.linear_groups import LinearGroup
from edgekit.exporters.lowering import lower
from edgekit.exporters.lowering_choice import LinearShape
from edgekit.exporters.lowering_names import TAKES_FLOATS, Lowering
from edgekit.exporters.onnx import OnnxExport, OnnxSettings, finish, save_onnx
from edgekit.exporters.onnx_stage import MODEL_FILE
from edgekit.exporters.substitution import DOMAIN
from edgekit.models.quantized import QuantizedLinear

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_ACTIVATIONS = 512
"""Rows of the table."""
_MOST_COPIES = 8
_MOST_FLOATS = 2**24
"""Weights of all copies together, unless one alone has more."""


@dataclass(frozen=True)
class Probe:
    """Linears of one shape, and the table of activations that they read."""

    shape: LinearShape
    copies: list[list[QuantizedLinear]]
    """Several modules of a model that have the shape; those of one list become one matmul."""
    activations: Floats = field(repr=False)
    """(rows, in)."""

    @classmethod
    def of(cls, shape: LinearShape, groups: list[LinearGroup], seed: int) -> Probe:
        """Returns the probe of as many groups as together do not fit a cache, each once."""
        distinct = list({group.name: group.coded for group in groups}.values())
        size = shape.in_features * shape.out_features
        count = min(len(distinct), _MOST_COPIES, max(1, _MOST_FLOATS // size))
        drawn = np.random.default_rng(seed).standard_normal((_ACTIVATIONS, shape.in_features), dtype=np.float32)
        return cls(shape, distinct[:count], drawn)

    def draw_ids(self, batch: int, length: int, count: int, seed: int) -> Ids:
        """Returns rows of the table, (count, batch, length)."""
        return np.random.default_rng(seed).integers(_ACTIVATIONS, size=(count, batch, length))

    def write(self, out: Path, lowering: Lowering, settings: OnnxSettings) -> Artifact:
        """Publishes the file as an `onnx` artifact."""
        model = self._graph(settings.opset)
        lower(model, self._modules(), None, dict.fromkeys(self._modules(), lowering))
        finish(model, settings)
        with publish(out, kind="onnx", lineage=Lineage(stage="autotune", config={"lowering": lowering})) as directory:
            save_onnx(OnnxExport(model, [], []), directory / MODEL_FILE)
        return Artifact.open(out)

    def expected(self, ids: Ids, lowering: Lowering) -> Floats:
        """Returns what torch computes for (B, T) ids with the codes, rounding the input where `lowering` does."""
        inputs = torch.from_numpy(self.activations[ids])
        with torch.inference_mode():
            parts = [_apply(linear, inputs, lowering)[:, 0] for copy in self.copies for linear in copy]
            joined: Floats = torch.cat(parts, dim=1).numpy()
        return joined

    def _modules(self) -> Mapping[str, QuantizedLinear]:
        return {
            f"copy_{number}.part_{place}": linear
            for number, copy in enumerate(self.copies)
            for place, linear in enumerate(copy)
        }

    def _graph(self, opset: int) -> ir.Model:
        """Returns a graph with a placeholder for each linear; each copy reads a lookup of its own."""
        ids = ir.Value(name="input_ids", shape=ir.Shape(["batch", "length"]), type=ir.TensorType(ir.DataType.INT64))
        logits = ir.Value(name="logits", type=ir.TensorType(ir.DataType.FLOAT))
        parts = [ir.Value(name=f"{name}.first") for name in self._modules()]
        joined = ir.node("Concat", parts, {"axis": 1}, outputs=[logits], name="logits")
        graph = ir.Graph([ids], [logits], nodes=[joined], opset_imports={"": opset}, name="probe")
        logits.shape = ir.Shape(["batch", self.shape.out_features * len(self.copies)])
        editor = GraphEditor(graph)
        table, first = editor.constant("activations", self.activations), editor.scalar(0)
        places = iter(range(len(parts)))
        for number, copy in enumerate(self.copies):
            read = editor.add(joined, "Gather", [table, ids], name=f"copy_{number}.inputs")
            for place, _ in enumerate(copy):
                name = f"copy_{number}.part_{place}"
                output = editor.add(
                    joined, "Linear", [read], domain=DOMAIN, attributes={"module": name}, name=f"{name}.placeholder"
                )
                row = editor.add(joined, "Gather", [output, first], attributes={"axis": 1}, name=f"{name}.first")
                joined.replace_input_with(next(places), row)
        return ir.Model(graph, ir_version=10)


def relative_difference(found: Floats, expected: Floats) -> float:
    """Returns the root mean square of the difference, as a share of that of `expected`."""
    error = found.astype(np.float64) - expected
    return float(np.sqrt(np.mean(error**2) / max(float(np.mean(expected.astype(np.float64) ** 2)), 1e-30)))


def _apply(linear: QuantizedLinear, inputs: torch.Tensor, lowering: Lowering) -> torch.Tensor:
    if lowering in TAKES_FLOATS:
        return F.linear(inputs, linear.weight.dequantize(), linear.bias)
    outputs: torch.Tensor = linear(inputs)
    return outputs
