"""Turns a model in memory into one ONNX graph: trace with placeholders, simplify, lower, describe.

It knows nothing of artifacts or stages.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.first_token import keep_first_token
from edgekit.exporters.linear_groups import linear_groups
from edgekit.exporters.lowering import StandardOperators, lower
from edgekit.exporters.lowering_choice import LoweringChoice, choose_lowerings
from edgekit.exporters.lowering_names import Lowering
from edgekit.exporters.precision import store_half
from edgekit.exporters.simplification import simplify
from edgekit.exporters.standard_lowering import STANDARD_OPSET
from edgekit.exporters.tracing import trace
from edgekit.models.tasks import TASKS

if TYPE_CHECKING:
    from edgekit.models.source import LoadedModel

BEST_OPSET, LOWEST_OPSET = 21, 18
"""21 is the newest that every runtime since onnxruntime 1.18 reads; below 18 Split and the norms are others."""

# The IR version that came with each operator set.
_IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10}
_PRODUCER = "edgekit"

LARGEST_SINGLE_BYTES = 3 * 2**29
"""Weights above 1.5 GiB are kept beside the graph."""
_FORMAT_LIMIT_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class OnnxSettings:
    """How to write a model."""

    opset: int
    ir_version: int
    first_token: bool
    """Compute the last layer for the first token alone where that changes nothing."""
    half: bool
    """Store weight matrices in two bytes where that loses nothing."""
    metadata: Mapping[str, str]
    """Written into the file as `metadata_props`."""
    standard: StandardOperators | None = None
    """None: onnxruntime's own operators where they are better."""
    choice: LoweringChoice | None = None
    """How linears on codes are written, as it was measured; None: as their schemes ask for."""


@dataclass(frozen=True)
class OnnxExport:
    """A graph, and what is to be known of it."""

    model: ir.Model
    first_token_linears: list[str]
    notes: list[str]
    lowerings: dict[str, Lowering] = field(default_factory=dict)
    """Module name to how it is written, where a measurement chose that."""

    def operators(self) -> dict[str, int]:
        """Returns operator to number of nodes, sorted by name."""
        names = (f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in self.model.graph)
        return dict(sorted(Counter(names).items()))


def choose_versions(opset_ceiling: int, ir_ceiling: int) -> tuple[int, int]:
    """Returns the operator set and IR version to write: the best that both ceilings allow.

    Raises:
        UnsupportedError: a ceiling is below what the exporter can write.
    """
    for opset in range(BEST_OPSET, LOWEST_OPSET - 1, -1):
        if opset <= opset_ceiling and _IR_VERSIONS[opset] <= ir_ceiling:
            return opset, _IR_VERSIONS[opset]
    raise UnsupportedError(
        f"onnx: found the ceilings opset {opset_ceiling} and IR version {ir_ceiling}, expected at least opset "
        f"{LOWEST_OPSET} and IR version {_IR_VERSIONS[LOWEST_OPSET]} (onnxruntime 1.14). "
        "Give the target a newer runtime."
    )


def export_onnx(loaded: LoadedModel, settings: OnnxSettings) -> OnnxExport:
    """Returns the graph of `loaded`, whose modules are in the precision that is to be written.

    Raises:
        UnsupportedError: the model cannot be traced, a scheme has no operator, or the standard dialect would need a
            newer operator set.
        UsageError: the choice of lowerings is of other linears.
    """
    if settings.standard is not None and settings.opset < STANDARD_OPSET:
        raise UnsupportedError(
            f"onnx in the standard dialect: found the ceiling opset {settings.opset}, expected at least "
            f"{STANDARD_OPSET}, which brought blocks of codes. Give the target a newer runtime."
        )
    fuse = settings.standard is None
    traced = trace(loaded.model, input_names(loaded), opset=settings.opset, fuse_attention=fuse)
    model = traced.model
    first_token_linears = keep_first_token(model.graph) if settings.first_token else []
    modules = dict(loaded.model.named_modules())
    chosen = plan_lowerings(model.graph, modules, first_token_linears, settings.choice)
    lower(model, modules, settings.standard, chosen)
    simplify(model)
    require_mask_is_read(model.graph)
    if settings.half:
        store_half(model.graph)
    finish(model, settings)
    return OnnxExport(model, first_token_linears, traced.notes, chosen)


def plan_lowerings(
    graph: ir.Graph, modules: Mapping[str, nn.Module], first_token_linears: Sequence[str], choice: LoweringChoice | None
) -> dict[str, Lowering]:
    """Returns how the linears of a traced graph are written where `choice` says it; empty without one.

    Raises:
        UsageError: the choice is of other linears.
    """
    return {} if choice is None else choose_lowerings(linear_groups(graph, modules), first_token_linears, choice)


def require_mask_is_read(graph: ir.Graph) -> None:
    """Refuses a graph in which padding would count as text.

    Raises:
        UnsupportedError: nothing reads `attention_mask`.
    """
    for value in graph.inputs:
        if value.name == "attention_mask" and not value.uses():
            raise UnsupportedError(
                "onnx: nothing in the traced model reads attention_mask, so padding would change its answers. "
                "Such a model cannot be exported."
            )


def input_names(loaded: LoadedModel) -> list[str]:
    """Returns the inputs that the model and its tokenizer share, in the order of the task."""
    taken = inspect.signature(loaded.model.forward).parameters
    given = loaded.tokenizer.model_input_names
    return [name for name in TASKS[loaded.task.kind].input_names if name in taken and name in given]


def save_onnx(export: OnnxExport, file: Path, *, external_data: bool | None = None) -> None:
    """Writes the graph; equal graphs give equal bytes.

    The weights go to `FILE_data` beside it when `external_data` is True, or when it is None and they exceed
    `LARGEST_SINGLE_BYTES`; else one file holds everything.

    Raises:
        UnsupportedError: one file would exceed the 2 GiB that the format allows.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = [value.const_value for value in export.model.graph.initializers.values()]
    weight_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if external_data is None:
        external_data = weight_bytes > LARGEST_SINGLE_BYTES
    if external_data:
        ir.save(export.model, file, external_data=f"{file.name}_data")
        return
    if weight_bytes >= _FORMAT_LIMIT_BYTES:
        raise UnsupportedError(f"{file.name}: would hold {weight_bytes} bytes of weights, the format allows 2 GiB.")
    proto = ir.serde.serialize_model(export.model)
    file.write_bytes(proto.SerializeToString(deterministic=True))


def finish(model: ir.Model, settings: OnnxSettings) -> None:
    """Sets names, versions and metadata of a finished graph, in place."""
    _rename_initializers(model.graph)
    common.RemoveUnusedOpsetsPass()(model)
    model.opset_imports[""] = settings.opset
    model.ir_version = settings.ir_version
    model.producer_name, model.producer_version = _PRODUCER, settings.metadata.get("edgekit_version", "")
    model.graph.name = "model"
    model.metadata_props.clear()
    model.metadata_props.update(sorted(settings.metadata.items()))
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
        node.metadata_props.clear()


def _rename_initializers(graph: ir.Graph) -> None:
    """Drops the name of the wrapper that was traced: initializers are called as in the model."""
    for name, value in list(graph.initializers.items()):
        if name.startswith("network."):
            value.name = name.removeprefix("network.")
