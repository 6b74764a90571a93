"""The `export` stage: a model artifact in, a directory that runtimes open out.

The `onnx` directory opens unchanged in onnxruntime (`onnx/model.onnx`), transformers.js (which looks for that name
because `config.json` says so) and optimum-onnx's `ORTModelForSequenceClassification`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.events import Event

if TYPE_CHECKING:
    from pathlib import Path

MODEL_FILE = "onnx/model.onnx"


class ExportConfig(StageConfig):
    """In what format, and under which ceilings, a model is written."""

    format: Literal["onnx"] = "onnx"
    """File format."""
    precision: Literal["as-is", "float32", "float16"] = "as-is"
    """`as-is` writes integer codes where the model has them. `float32` writes plain weights. `float16` stores weights
    as float16 and computes in float32."""
    opset: int = Field(default=21, ge=1)
    """Highest ONNX operator set that the file may use."""
    ir_version: int = Field(default=10, ge=1)
    """Highest ONNX IR version that the file may have."""
    first_token_only: bool = True
    """Compute the last layer for the first token alone where the head reads no other: the same logits for less work."""


def export(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Makes an artifact of kind `onnx`: the model file, configuration, tokenizer, task and `export.json`.

    Raises:
        UnsupportedError: something in the model or under the ceilings cannot be expressed, by name.
        ModelError: the model cannot be read.
    """
    from edgekit.exporters.onnx import OnnxOptions, export_onnx
    from edgekit.exporters.reference import EXPORT_FILE
    from edgekit.models.source import load_model

    model = inputs.require("model", "export")
    context.events(Event("progress", stage="export", text="tracing", completed=0, total=1, unit="models"))
    options = OnnxOptions(config.precision, config.opset, config.ir_version, config.first_token_only)
    content, description = export_onnx(load_model(model), options, digest=model.digest)
    with publish(context.out, kind="onnx", lineage=lineage_of("export", inputs, config, context)) as directory:
        file = directory / MODEL_FILE
        file.parent.mkdir()
        file.write_bytes(content)
        (directory / EXPORT_FILE).write_text(description.to_json(), encoding="utf-8")
        copy_surroundings(model.path, directory)
    for note in description.notes:
        context.events(Event("message", stage="export", text=note))
    context.events(Event("progress", stage="export", text="written", completed=1, total=1, unit="models"))
    return Artifact.open(context.out)


def copy_surroundings(model: Path, directory: Path) -> None:
    """Copies tokenizer, task and configuration; the latter tells transformers.js which file to open on any device."""
    import json
    import shutil

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "task.json"):
        if (model / name).is_file():
            shutil.copyfile(model / name, directory / name)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # For transformers.js "fp32" means the file name without a suffix, whatever the file holds.
    config["transformers.js_config"] = {"dtype": "fp32"}
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
