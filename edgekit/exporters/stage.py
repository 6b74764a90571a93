"""The stage `export`: a model artifact in, a directory that a runtime opens out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgekit.artifact import Artifact, hash_json, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import UnsupportedError
from edgekit.events import Event

if TYPE_CHECKING:
    from edgekit.exporters.onnx import OnnxExport
    from edgekit.models.source import LoadedModel

MODEL_FILE = "onnx/model.onnx"
_COPIED = ("tokenizer.json", "tokenizer_config.json", "task.json")


class ExportConfig(StageConfig):
    """In which format a model is written, and what its reader can read."""

    format: Literal["onnx", "gguf"] = "onnx"
    """The file format; `gguf` is llama.cpp's, for language models."""
    precision: Literal["as-is", "float32", "float16"] = "as-is"
    """`as-is` keeps the model's codes. `float32` and `float16` write floats in their place; `float16` stores them in
    two bytes and computes in float32."""
    dialect: Literal["onnxruntime", "standard"] = "onnxruntime"
    """Classifiers in `onnx`: `onnxruntime` uses its own operators, the fastest there; `standard` uses operators of the
    ONNX standard alone, for other runtimes."""
    opset: int = Field(default=21, ge=1)
    """Highest ONNX operator set that the reader knows; the file may use an older one."""
    ir_version: int = Field(default=10, ge=1)
    """Highest ONNX IR version that the reader knows; the file may use an older one."""
    first_token: bool = True
    """Compute the last layer for the first token alone where nothing else reaches the logits. Exact, and faster."""
    left_padding: bool = True
    """Language models: heed padding before a text, as batches of prompts have it. Without it one text at a time, or
    padding after it."""
    logits_to_keep: int = Field(default=1, ge=0)
    """Language models: how many of the last tokens get logits, 0 for all. Callers may ask for others by the input
    `num_logits_to_keep`; onnxruntime-genai before 0.14 needs 0."""
    external_data: bool | None = None
    """Keep the weights in a file beside the graph. Left out: where they exceed 1.5 GiB."""


def export(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a model as an `onnx` artifact: a directory that onnxruntime, transformers.js and optimum open unchanged.

    With `format = "gguf"` it is a `gguf` artifact, for llama.cpp.

    Raises:
        UnsupportedError: the model cannot be traced, a scheme has no operator, or a ceiling is too low.
        ModelError: the model cannot be read, or a weight is not finite.
        ParityError: a language model's file computes something else than the model.
    """
    if config.format == "gguf":
        from edgekit.exporters.gguf_stage import export_gguf_artifact

        return export_gguf_artifact(inputs, config, context)
    from edgekit.exporters.decoder_stage import copy_generation_files, write_decoder
    from edgekit.exporters.lowering import StandardOperators
    from edgekit.exporters.onnx import OnnxSettings, choose_versions, export_onnx, save_onnx
    from edgekit.exporters.precision import apply_precision, require_finite
    from edgekit.models.source import load_model

    model = inputs.require("model", "export")
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
        metadata=_metadata(model, loaded),
        standard=StandardOperators(round_activations=True) if config.dialect == "standard" else None,
    )
    with publish(context.out, kind="onnx", lineage=lineage_of("export", inputs, config, context)) as directory:
        if loaded.task.kind == "causal-lm":
            _require_own_dialect(config)
            exported = write_decoder(directory, loaded, settings, config, context).export
        else:
            exported = export_onnx(loaded, settings)
            save_onnx(exported, directory / MODEL_FILE, external_data=config.external_data)
        _write_beside(directory, model, exported, config.precision)
        if loaded.task.kind == "causal-lm":
            copy_generation_files(directory, model)
    return Artifact.open(context.out)


def _require_own_dialect(config: ExportConfig) -> None:
    if config.dialect != "onnxruntime":
        raise UnsupportedError(
            f"onnx in the {config.dialect} dialect: found a model for the task 'causal-lm', expected a classifier: its "
            "cache is written by onnxruntime's own attention. Use the dialect onnxruntime."
        )


def _metadata(model: Artifact, loaded: LoadedModel) -> dict[str, str]:
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


def _write_beside(
    directory: Path, model: Artifact, exported: OnnxExport, precision: Literal["as-is", "float32", "float16"]
) -> None:
    """Writes configuration, tokenizer, task and description beside the model."""
    from dataclasses import asdict

    from edgekit.exporters.description import ExportDescription, OldestReader, TensorDescription, write_description
    from edgekit.exporters.oldest_reader import oldest_reader
    from edgekit.models.tasks import read_task

    for name in _COPIED:
        shutil.copyfile(model.path / name, directory / name)
    config = _read_json(model.path / "config.json")
    task = read_task(model)
    if task.kind == "text-classification":
        # A pipeline that truncates reads the length here; the teacher's own may be longer than the student was taught.
        tokenizer = _read_json(directory / "tokenizer_config.json")
        tokenizer["model_max_length"] = min(tokenizer.get("model_max_length", task.max_length), task.max_length)
        _write_json(tokenizer, directory / "tokenizer_config.json")
    # transformers.js opens `model_quantized.onnx` unless it is told that the plain name is the one.
    config["transformers.js_config"] = {"dtype": "fp32"}
    if (directory / f"{MODEL_FILE}_data").is_file():
        config["transformers.js_config"]["use_external_data_format"] = True
    _write_json(config, directory / "config.json")
    graph = exported.model.graph
    need = oldest_reader(graph)

    def describe(value: Any) -> TensorDescription:
        shape = [size if isinstance(size, int) else str(size.value) for size in value.shape]
        return TensorDescription(name=value.name, type=value.dtype.name.lower(), shape=shape)

    write_description(
        directory,
        ExportDescription(
            file=MODEL_FILE,
            opset=exported.model.opset_imports[""],
            ir_version=exported.model.ir_version,
            oldest_reader=None if need is None else OldestReader(**asdict(need)),
            precision=precision,
            inputs=[describe(value) for value in graph.inputs],
            outputs=[describe(value) for value in graph.outputs],
            operators=exported.operators(),
            first_token_linears=exported.first_token_linears,
            notes=exported.notes,
            model_digest=model.digest,
        ),
    )


def _write_json(content: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
