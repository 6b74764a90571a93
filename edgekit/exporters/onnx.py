"""Writes a classifier as ONNX for onnxruntime: trace with placeholders, simplify, lower, describe.

The result opens in plain onnxruntime; which files lie around it is decided in `stage.py`.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from edgekit._version import __version__
from edgekit.errors import UnsupportedError
from edgekit.exporters.first_token import keep_first_token
from edgekit.exporters.lowering import lower
from edgekit.exporters.reference import Precision, at_precision
from edgekit.exporters.simplification import simplify
from edgekit.exporters.storage import store_float16
from edgekit.exporters.tracing import OUTPUT, trace
from edgekit.models.tasks import TASKS

if TYPE_CHECKING:
    from edgekit.models.source import LoadedModel

MINIMUM_OPSET = 18
PREFERRED_OPSET = 21
# protobuf holds 2 GiB; names and structure take the rest.
_MAXIMUM_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class OnnxOptions:
    """What an export is asked for."""

    precision: Precision = "as-is"
    """How weights are stored."""
    opset: int = PREFERRED_OPSET
    """Highest operator set that may be used."""
    ir_version: int = 10
    """Highest IR version that may be used."""
    first_token_only: bool = True
    """Leave out what no output depends on."""


@dataclass(frozen=True)
class TensorDescription:
    """An input or output."""

    name: str
    type: str
    shape: list[int | str]


@dataclass(frozen=True)
class ExportDescription:
    """The content of `export.json`."""

    format: str
    precision: Precision
    opset: int
    ir_version: int
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]
    operators: dict[str, int]
    """Operator, with its domain where it is not ONNX's own, to its count."""
    model_digest: str
    """Digest of the artifact that was exported."""
    edgekit_version: str
    weight_bytes: int
    """Size of all constants."""
    first_token_modules: list[str]
    """Linears that are computed for the first token alone."""
    notes: list[str]
    """What a person should know."""

    def to_json(self) -> str:
        """Returns the text of `export.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"


def export_onnx(loaded: LoadedModel, options: OnnxOptions, *, digest: str) -> tuple[bytes, ExportDescription]:
    """Returns the content of the ONNX file and its description; the same model and options give the same bytes.

    `digest` is the digest of the artifact that `loaded` is from.

    Raises:
        UnsupportedError: the ceilings are too low, a scheme has no operator, the model cannot be traced or is too large.
    """
    opset, ir_version = choose_versions(options)
    network = at_precision(loaded.model, options.precision)
    # Always traced at the preferred operator set: what differs below it is lowered, not traced.
    traced = trace(network, input_names(loaded), opset=opset)
    model = traced.model
    simplify(model)
    narrowed = keep_first_token(model.graph) if options.first_token_only else []
    lower(model, dict(network.named_modules()), opset=opset)
    common.RemoveUnusedNodesPass()(model)
    if options.precision == "float16":
        store_float16(model.graph)
    _name_all(model, loaded, digest)
    model.ir_version = ir_version
    weight_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weight_bytes > _MAXIMUM_BYTES:
        raise UnsupportedError(
            f"onnx: the weights take {weight_bytes / 2**30:.1f} GiB, one file holds 2 GiB. Quantize the model, or "
            'export with precision = "float16".'
        )
    description = ExportDescription(
        format="onnx",
        precision=options.precision,
        opset=opset,
        ir_version=ir_version,
        inputs=[_describe(value) for value in model.graph.inputs],
        outputs=[_describe(value) for value in model.graph.outputs],
        operators=count_operators(model.graph),
        model_digest=digest,
        edgekit_version=__version__,
        weight_bytes=weight_bytes,
        first_token_modules=narrowed,
        notes=traced.notes,
    )
    return ir.to_proto(model).SerializeToString(deterministic=True), description


def choose_versions(options: OnnxOptions) -> tuple[int, int]:
    """Returns the operator set and IR version to write: no higher than asked for, no higher than needed.

    Raises:
        UnsupportedError: a ceiling is below what the operators need.
    """
    from onnx import helper

    if options.opset < MINIMUM_OPSET:
        raise UnsupportedError(
            f"onnx: found opset {options.opset}, the operators need at least {MINIMUM_OPSET}. Use a newer runtime."
        )
    opset = min(options.opset, PREFERRED_OPSET)
    ir_version = int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    if ir_version > options.ir_version:
        raise UnsupportedError(
            f"onnx: found IR version {options.ir_version}, opset {opset} needs at least {ir_version}. "
            "Lower the opset, or use a newer runtime."
        )
    return opset, ir_version


def input_names(loaded: LoadedModel) -> list[str]:
    """Returns the inputs that the model takes and its tokenizer gives, in the order of the task table."""
    taken = inspect.signature(loaded.model.forward).parameters
    given = loaded.tokenizer.model_input_names
    return [name for name in TASKS[loaded.task.kind].input_names if name in taken and name in given]


def count_operators(graph: ir.Graph) -> dict[str, int]:
    """Returns operator to count, sorted by name; operators of other domains are spelled `domain::operator`."""
    names = [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph]
    return dict(sorted(Counter(names).items()))


def _name_all(model: ir.Model, loaded: LoadedModel, digest: str) -> None:
    """Gives the graph its names and metadata, and drops token types where nothing reads them."""
    graph = model.graph
    for value in [value for value in graph.inputs if not value.uses()]:
        if value.name != "token_type_ids":
            raise UnsupportedError(f"onnx: {type(loaded.model).__name__} does not read '{value.name}'.")
        graph.inputs.remove(value)
    for value in list(graph.initializers.values()):
        name = (value.name or "").removeprefix("network.")
        if name != value.name and name not in graph.initializers:
            value.name = name
    attentions = [node for node in graph if node.op_type == "MultiHeadAttention"]
    for index, node in enumerate(attentions):
        node.name = node.outputs[0].name = f"attention.{index}"
    graph.name = type(loaded.model).__name__
    model.producer_name, model.producer_version = "edgekit", __version__
    model.metadata_props.clear()
    model.metadata_props.update(
        {
            "edgekit_version": __version__,
            "labels": json.dumps(loaded.task.labels, ensure_ascii=False),
            "max_length": str(loaded.task.max_length),
            "model_digest": digest,
            "task": loaded.task.kind,
        }
    )


def _describe(value: ir.Value) -> TensorDescription:
    shape = [size if isinstance(size, int) else str(size.value) for size in value.shape or ()]
    return TensorDescription(str(value.name), value.dtype.name.lower() if value.dtype else "", shape)
