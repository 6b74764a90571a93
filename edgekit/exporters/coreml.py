"""The `coreml` branch of the stage `export`: a Core ML package (.mlpackage), weights as codes, for iOS and macOS.

It is written anywhere and runs on Apple's systems alone. So the file is read back, its codes are compared with the
student's, and its program is interpreted in numpy on real token rows; that is no run, and the artifact is unverified
until a Mac has run the vectors that lie beside the package.

Where the student rounds activations to 8 bits, the package does not: Core ML decodes the codes and multiplies floats.
It computes in float32, which is what torch is compared with; float16, which the Neural Engine needs, changes logits and
is written where the precision asks for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import ModelError, UnsupportedError
from edgekit.events import Event
from edgekit.exporters.coreml_file import MODEL, StoredCodes, read_package
from edgekit.exporters.coreml_needs import System, oldest_system, require_coremltools
from edgekit.exporters.coreml_program import ProgramWriter, codes_name
from edgekit.exporters.coreml_vectors import make_vectors, require_interpreted, write_vectors
from edgekit.exporters.description import CoreMLDescription, TensorDescription, write_description
from edgekit.exporters.packing import concatenate
from edgekit.models.quantized import QuantizedLinear, QuantizedModule, QuantizedTensor
from edgekit.runtimes.silence import silent_library

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from edgekit.exporters.onnx import OnnxExport
    from edgekit.exporters.stage import ExportConfig
    from edgekit.models.source import LoadedModel

PACKAGE = "model.mlpackage"
UNVERIFIED = (
    "UNVERIFIED: Core ML runs on Apple's systems alone, so nobody has run this package. Run `python verify_on_mac.py`, "
    "which lies beside it, on a Mac."
)
_REMOVED_PASSES = ("common::divide_to_multiply", "common::guard_negative_gather_indices")
"""coremltools' passes that round otherwise than torch, or guard against what token ids are not."""
_MANIFEST_IDENTIFIERS = ("7b6cc1c9-6f3c-5f0e-9a52-6d1f6f0a0001", "7b6cc1c9-6f3c-5f0e-9a52-6d1f6f0a0002")
"""Of the program and of the weights: coremltools draws others each time, and equal models give equal files."""


def export_coreml_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a classifier as a `coreml` artifact: `model.mlpackage`, test vectors, and a script that runs them.

    Raises:
        UnsupportedError: the model cannot be traced, or Core ML has no operator for a part of it or for a scheme.
        ModelError: the model cannot be read, a weight is not finite, or the package does not hold the codes.
        ParityError: the program that was written, interpreted, computes something else than torch.
        EnvironmentLacksError: coremltools is not installed.
    """
    from edgekit.exporters.block_rounding import multiply_floats
    from edgekit.exporters.lowering import StandardOperators
    from edgekit.exporters.onnx import export_onnx, input_names
    from edgekit.exporters.onnx_stage import copy_parts, prepare

    require_coremltools()
    model = inputs.require("model", "export")
    operators = StandardOperators(round_activations=False, gather_codes=False)
    loaded, settings = prepare(model, config, context, operators)
    exported = export_onnx(loaded, replace(settings, half=False))
    rounds = rounds_activations(loaded.model)
    multiply_floats(loaded.model)
    schemes = [module.scheme for module in loaded.model.modules() if isinstance(module, QuantizedModule)]
    half, oldest = config.precision == "float16", oldest_system(schemes)
    with publish(context.out, kind="coreml", lineage=lineage_of("export", inputs, config, context)) as directory:
        package = directory / PACKAGE
        context.events(Event("progress", stage="export", text="writing the Core ML program"))
        with silent_library():
            write_package(exported, package, loaded.task.max_length, oldest=oldest, half=half)
        held = require_codes(exported, loaded.model, package)
        vectors = make_vectors(loaded, loaded.model, input_names(loaded))
        computed = "float16" if half else "float32"
        difference = require_interpreted(package, vectors, computed)
        write_vectors(directory, package, vectors, computed)
        copy_parts(directory, model)
        notes = [*exported.notes, *_notes(loaded, rounds=rounds, difference=difference)]
        description = CoreMLDescription(
            format="coreml",
            file=f"{PACKAGE}/{MODEL}",
            precision=config.precision,
            notes=notes,
            model_digest=model.digest,
            first_token_linears=exported.first_token_linears,
            deployment_target=oldest,
            computes_in=computed,
            max_length=loaded.task.max_length,
            inputs=[_tensor(name, "int32", [1, "length"]) for name in input_names(loaded)],
            outputs=[_tensor("logits", computed, [1, len(loaded.task.labels)])],
            coded_weights=held,
            interpreted_max_abs_diff=difference,
        )
        write_description(directory, description)
    return Artifact.open(context.out)


def _tensor(name: str, kind: str, shape: list[int | str]) -> TensorDescription:
    return TensorDescription(name=name, type=kind, shape=shape)


def rounds_activations(network: nn.Module) -> bool:
    """Returns whether a linear on codes rounds its input to 8 bits."""
    linears = (module for module in network.modules() if isinstance(module, QuantizedLinear))
    return any(linear.scheme.activations == "dynamic-int8" for linear in linears)


def write_package(exported: OnnxExport, package: Path, max_length: int, *, oldest: System, half: bool) -> None:
    """Writes the graph as a package for `oldest` that takes one text of 1 to `max_length` tokens.

    Raises:
        UnsupportedError: an operator has no counterpart.
    """
    import coremltools

    graph = exported.model.graph
    reader = coremltools.target[oldest]
    # without a name of its own: coremltools keeps a name that a refused export took
    length = coremltools.RangeDim(1, max_length, default=max_length)
    names = [str(value.name) for value in graph.inputs]
    taken = [coremltools.TensorType(name=name, shape=(1, length), dtype=np.int32) for name in names]
    passes = coremltools.PassPipeline.DEFAULT
    passes.remove_passes(set(_REMOVED_PASSES))
    program = _program(graph, taken, reader, blockwise=oldest == "iOS18")
    try:
        model = coremltools.convert(
            program,
            source="milinternal",
            inputs=taken,
            convert_to="mlprogram",
            minimum_deployment_target=reader,
            compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
            pass_pipeline=passes,
            skip_model_load=True,
        )
    except Exception as error:  # coremltools' passes raise what Python raises
        raise UnsupportedError(f"coreml: coremltools cannot write the model ({error}). Export it as onnx.") from error
    _save(model, package, dict(exported.model.metadata_props))


def _program(graph: ir.Graph, taken: list[Any], oldest: Any, *, blockwise: bool) -> Any:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function, Program, types

    shapes = {entry.name: Builder.placeholder(shape=entry.shape.symbolic_shape, dtype=types.int32) for entry in taken}
    with Function(shapes, opset_version=oldest) as function:
        writer = ProgramWriter(Builder, blockwise=blockwise)
        function.set_outputs([writer.write(graph, {name: function.inputs[name] for name in shapes})])
    program = Program()
    program.add_function("main", function)
    return program


def _save(model: Any, package: Path, metadata: dict[str, str]) -> None:
    """Saves a model so that equal models give equal files."""
    from coremltools.proto import Model_pb2

    with TemporaryDirectory(dir=package.parent) as scratch:
        written = Path(scratch) / PACKAGE
        model.save(str(written))
        content: Any = Model_pb2.Model()
        content.ParseFromString((written / MODEL).read_bytes())
        kept = content.description.metadata.userDefined
        for key in list(kept):
            if key.endswith("conversion_date"):
                del kept[key]
        for key, value in metadata.items():
            kept[f"edgekit.{key}"] = value
        (written / MODEL).write_bytes(content.SerializeToString(deterministic=True))
        manifest = json.loads((written / "Manifest.json").read_text(encoding="utf-8"))
        entries = sorted(manifest["itemInfoEntries"].values(), key=lambda entry: str(entry["name"]))
        named = dict(zip(_MANIFEST_IDENTIFIERS, entries, strict=False))
        root = next(key for key, entry in named.items() if entry["name"] == Path(MODEL).name)
        manifest |= {"itemInfoEntries": named, "rootModelIdentifier": root}
        (written / "Manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.move(written, package)


def require_codes(exported: OnnxExport, network: nn.Module, package: Path) -> list[str]:
    """Returns the names of the modules on codes, whose codes, scales and zero points the package holds bit for bit.

    Raises:
        ModelError: it holds others, or none.
    """
    stored = read_package(package).codes
    modules = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedModule)}
    held: set[str] = set()
    for constant in exported.model.graph.initializers:
        if not constant.endswith(".codes"):
            continue
        names = split_name(constant.removesuffix(".codes"), modules)
        wanted = concatenate([modules[name].quantized_weight() for name in names])
        if not _holds(stored.get(codes_name(constant)), wanted):
            raise ModelError(
                f"coreml: {package.name} does not hold the codes of '{', '.join(names)}'. Nothing was exported."
            )
        held.update(names)
    if held != set(modules):
        missing = ", ".join(sorted(set(modules) - held))
        raise ModelError(f"coreml: {package.name} does not hold the codes of '{missing}'. Nothing was exported.")
    return sorted(held)


def split_name(joined: str, modules: Collection[str]) -> list[str]:
    """Returns the modules that one matrix holds: `a.query+key` is `a.query` and `a.key`, as `lowering` joins them."""
    parts = joined.split("+")
    if all(part in modules for part in parts):
        return parts
    prefix = parts[0].rpartition(".")[0]
    return [parts[0], *(f"{prefix}.{part}" for part in parts[1:])]


def _holds(found: StoredCodes | None, wanted: QuantizedTensor) -> bool:
    """Returns whether a package's weight is a student's; where that has no zero points, the package's are 0."""
    if found is None:
        return False
    zeros = torch.zeros_like(wanted.codes[:, :1]) if wanted.zero_points is None else wanted.zero_points
    mine = np.zeros((1, 1), np.int8) if found.zero_points is None else found.zero_points
    return (
        np.array_equal(found.codes, wanted.codes.numpy())
        and found.codes.dtype == wanted.codes.numpy().dtype
        and np.array_equal(found.scales.astype(np.float32), wanted.scales.float().numpy())
        and bool((mine.astype(np.int16) == zeros.numpy().astype(np.int16)).all())
    )


def _notes(loaded: LoadedModel, *, rounds: bool, difference: float) -> list[str]:
    notes = [
        UNVERIFIED,
        f"Its program, interpreted in numpy (not run), is within {difference:.1g} of torch with the same codes.",
    ]
    if rounds:
        notes.append("Activations are not rounded to 8 bits: Core ML multiplies floats with what the codes stand for.")
    return notes
