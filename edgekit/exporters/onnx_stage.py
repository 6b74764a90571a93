"""The `onnx` branch of the stage `export`, and what the formats that are made from an ONNX graph share with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, hash_json, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import UnsupportedError
from edgekit.events import Event
from edgekit.exporters.description import OldestReader, OnnxDescription, TensorDescription, write_description
from edgekit.exporters.oldest_reader import oldest_reader
from edgekit.formats import FORMATS

if TYPE_CHECKING:
    from edgekit.exporters.lowering import StandardOperators
    from edgekit.exporters.onnx import OnnxExport, OnnxSettings
    from edgekit.exporters.stage import ExportConfig
    from edgekit.models.source import LoadedModel

MODEL_FILE = FORMATS["onnx"].file
_COPIED = ("tokenizer.json", "tokenizer_config.json", "task.json")


def export_onnx_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a model as an `onnx` artifact: a directory that onnxruntime, transformers.js and optimum open unchanged.

    Raises:
        UnsupportedError: the model cannot be traced, a scheme has no operator, or a ceiling is too low.
        ModelError: the model cannot be read, or a weight is not finite.
        ParityError: a language model's file computes something else than the model.
        UsageError: the choice of lowerings is of other linears.
        ArtifactError: it is no choice, or another version of edgekit wrote it.
    """
    from edgekit.exporters.decoder_stage import copy_generation_files, write_decoder
    from edgekit.exporters.lowering import StandardOperators
    from edgekit.exporters.onnx import export_onnx, save_onnx

    model = inputs.require("model", "export")
    standard = StandardOperators(round_activations=True) if config.dialect == "standard" else None
    loaded, settings = prepare(model, config, context, standard)
    settings = with_choice(settings, inputs)
    with publish(context.out, kind="onnx", lineage=lineage_of("export", inputs, config, context)) as directory:
        if loaded.task.kind == "causal-lm":
            _require_own_dialect(config)
            exported = write_decoder(directory, loaded, settings, config, context).export
        else:
            exported = export_onnx(loaded, settings)
            save_onnx(exported, directory / MODEL_FILE, external_data=config.external_data)
        copy_parts(directory, model)
        _name_file_for_transformers_js(directory)
        described = describe_onnx(exported, model, config, MODEL_FILE)
        write_description(directory, describe_lowerings(described, exported, settings))
        if loaded.task.kind == "causal-lm":
            copy_generation_files(directory, model)
    return Artifact.open(context.out)


def prepare(
    model: Artifact, config: ExportConfig, context: StageContext, standard: StandardOperators | None
) -> tuple[LoadedModel, OnnxSettings]:
    """Returns the model in the precision that is to be written, and how its graph is to be.

    Raises:
        UnsupportedError: a ceiling is too low, or a weight exceeds float16.
        ModelError: the model cannot be read, or a weight is not finite.
    """
    from edgekit.exporters.onnx import OnnxSettings, choose_versions
    from edgekit.exporters.precision import apply_precision, require_finite
    from edgekit.models.source import load_model

    opset, ir_version = choose_versions(config.opset, config.ir_version)
    loaded = load_model(model)
    require_finite(loaded.model, str(model.path))
    context.events(Event("progress", stage="export", text="tracing the model"))
    apply_precision(loaded.model, config.precision)
    settings = OnnxSettings(
        opset=opset,
        ir_version=ir_version,
        first_token=config.first_token,
        half=config.precision == "float16",
        metadata=lineage_metadata(model, loaded),
        standard=standard,
    )
    return loaded, settings


def with_choice(settings: OnnxSettings, inputs: StageInputs) -> OnnxSettings:
    """Returns the settings with the choice of lowerings that the stage was given, if any.

    Raises:
        ArtifactError: it is no choice, or another version of edgekit wrote it.
        UnsupportedError: it names a lowering that its scheme does not allow.
    """
    from edgekit.exporters.lowering_choice import read_choice

    return settings if inputs.lowering is None else replace(settings, choice=read_choice(inputs.lowering))


def describe_lowerings(description: OnnxDescription, exported: OnnxExport, settings: OnnxSettings) -> OnnxDescription:
    """Returns the description with what a choice of lowerings made of the linears, if there was one."""
    from edgekit.exporters.lowering_choice import describe_choice

    if settings.choice is None:
        return description
    notes = [*description.notes, *describe_choice(settings.choice)]
    return description.model_copy(update={"lowerings": exported.lowerings, "notes": notes})


def lineage_metadata(model: Artifact, loaded: LoadedModel) -> dict[str, str]:
    """Returns what the file itself says of where it comes from."""
    from edgekit._version import __version__

    return {
        "edgekit_version": __version__,
        "labels": json.dumps(loaded.task.labels, ensure_ascii=False),
        "lineage_digest": hash_json(model.as_ancestor().model_dump(mode="json")),
        "max_length": str(loaded.task.max_length),
        "model_digest": model.digest,
        "task": loaded.task.kind,
    }


def copy_parts(directory: Path, model: Artifact) -> None:
    """Copies configuration, tokenizer and task beside an exported model.

    A pipeline that truncates reads the length in the tokenizer's configuration; the teacher's own may be longer than
    the student was taught.
    """
    from edgekit.models.tasks import read_task

    for name in _COPIED:
        shutil.copyfile(model.path / name, directory / name)
    task = read_task(model)
    if task.kind == "text-classification":
        tokenizer = _read_json(directory / "tokenizer_config.json")
        tokenizer["model_max_length"] = min(tokenizer.get("model_max_length", task.max_length), task.max_length)
        _write_json(tokenizer, directory / "tokenizer_config.json")
    _write_json(_read_json(model.path / "config.json"), directory / "config.json")


def describe_onnx(exported: OnnxExport, model: Artifact, config: ExportConfig, file: str) -> OnnxDescription:
    """Returns what `export.json` says of a graph that lies in `file`, or that `file` was made from."""
    graph = exported.model.graph
    need = oldest_reader(graph, in_own_format=config.format == "ort")

    def describe(value: Any) -> TensorDescription:
        shape = [size if isinstance(size, int) else str(size.value) for size in value.shape]
        return TensorDescription(name=value.name, type=value.dtype.name.lower(), shape=shape)

    return OnnxDescription(
        format=config.format,
        file=file,
        opset=exported.model.opset_imports[""],
        ir_version=exported.model.ir_version,
        oldest_reader=None if need is None else OldestReader(**asdict(need)),
        precision=config.precision,
        inputs=[describe(value) for value in graph.inputs],
        outputs=[describe(value) for value in graph.outputs],
        operators=exported.operators(),
        first_token_linears=exported.first_token_linears,
        notes=exported.notes,
        model_digest=model.digest,
    )


def _name_file_for_transformers_js(directory: Path) -> None:
    """Says in `config.json` which file transformers.js opens: `model_quantized.onnx` unless it is told otherwise."""
    config = _read_json(directory / "config.json")
    config["transformers.js_config"] = {"dtype": "fp32"}
    if (directory / f"{MODEL_FILE}_data").is_file():
        config["transformers.js_config"]["use_external_data_format"] = True
    _write_json(config, directory / "config.json")


def _require_own_dialect(config: ExportConfig) -> None:
    if config.dialect != "onnxruntime":
        raise UnsupportedError(
            f"onnx in the {config.dialect} dialect: found a model for the task 'causal-lm', expected a classifier: its "
            "cache is written by onnxruntime's own attention. Use the dialect onnxruntime."
        )


def _write_json(content: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
