"""The stage `export`: a model artifact in, a directory that a runtime opens out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgekit.artifact import Artifact
from edgekit.contract import StageConfig, StageContext, StageInputs
from edgekit.errors import UnsupportedError
from edgekit.formats import FORMATS, FormatName

LOWERED: tuple[FormatName, ...] = ("onnx",)
"""Formats in which linears on codes can be written in more than one way. Not `ort`: it is saved with what onnxruntime
computes at load, so that codes that are decoded there would be floats in the file."""


class ExportConfig(StageConfig):
    """In which format a model is written, and what its reader can read."""

    format: FormatName = "onnx"
    """The file format; `ort` (onnxruntime in mobile apps), `openvino`, `litert`, `executorch` and `coreml` (unverified
    until a Mac has run it) hold classifiers, `gguf` (llama.cpp) language models."""
    precision: Literal["as-is", "float32", "float16"] = "as-is"
    """`as-is` keeps the model's codes. `float32` and `float16` write floats in their place; `float16` stores them in
    two bytes and computes in float32; `coreml` computes in float16 then."""
    dialect: Literal["onnxruntime", "standard"] = "onnxruntime"
    """Classifiers in `onnx`: `onnxruntime` uses its own operators, the fastest there; `standard` uses operators of the
    ONNX standard alone, for other runtimes."""
    opset: int = Field(default=21, ge=1)
    """Highest ONNX operator set that the reader knows; the file may use an older one."""
    ir_version: int = Field(default=10, ge=1)
    """Highest ONNX IR version that the reader knows; the file may use an older one."""
    lengths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """`litert`: tokens of each signature of the file, whose shapes are fixed, besides what the model reads at most;
    left out: 16, 32, 64 and so on."""
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
    """Writes a model as an artifact of the format's kind: a directory that the format's tools open unchanged.

    `onnx`: onnxruntime, transformers.js and optimum. `ort`: onnxruntime's build for mobile apps. `openvino`: OpenVINO
    and optimum-intel. `litert`: LiteRT and TensorFlow Lite. `executorch`: ExecuTorch with XNNPACK. `coreml`: Core ML on
    iOS and macOS. `gguf`: llama.cpp.

    Raises:
        UnsupportedError: the format cannot hold such a model, it cannot be traced, a scheme has no operator, or a
            ceiling is too low.
        ModelError: the model cannot be read, or a weight is not finite.
        ParityError: a language model's file, or a Core ML program as it is interpreted, computes something else than
            the model.
        EnvironmentLacksError: the format's own library is not installed.
        UsageError: the choice of lowerings is of other linears.
        ArtifactError: it is no choice, or another version of edgekit wrote it.
    """
    from edgekit.models.tasks import read_task

    _require_fitting(config.format, read_task(inputs.require("model", "export")).kind)
    _require_codes(inputs, config)
    if config.lengths is not None and not FORMATS[config.format].fixed_lengths:
        raise UnsupportedError(
            f"{config.format}: lengths: found {config.lengths}, expected none: its shapes are free. Leave them out."
        )
    match config.format:
        case "onnx":
            from edgekit.exporters.onnx_stage import export_onnx_artifact as write
        case "ort":
            from edgekit.exporters.ort_format import export_ort_artifact as write
        case "openvino":
            from edgekit.exporters.openvino import export_openvino_artifact as write
        case "litert":
            from edgekit.exporters.litert import export_litert_artifact as write
        case "executorch":
            from edgekit.exporters.executorch import export_executorch_artifact as write
        case "coreml":
            from edgekit.exporters.coreml import export_coreml_artifact as write
        case "gguf":
            from edgekit.exporters.gguf_stage import export_gguf_artifact as write
    return write(inputs, config, context)


def _require_codes(inputs: StageInputs, config: ExportConfig) -> None:
    """Refuses a choice of lowerings where it would not be followed."""
    written = (config.format, config.precision, config.dialect)
    if inputs.lowering is not None and (written[0] not in LOWERED or written[1:] != ("as-is", "onnxruntime")):
        raise UnsupportedError(
            f"lowering: found a choice for {written[0]} in the precision {written[1]} and the dialect {written[2]}, "
            f"expected {' or '.join(LOWERED)}, as-is and onnxruntime: only there codes are written in more than one "
            "way. Leave it out."
        )


def _require_fitting(name: FormatName, task: str) -> None:
    written = FORMATS[name]
    if task not in written.tasks:
        raise UnsupportedError(
            f"{name}: found a model for the task '{task}', expected {' or '.join(written.tasks)}: "
            f"{written.limitation}. Export it as onnx."
        )
