"""`export.json`: what an exported directory holds, for programs that do not open the file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.errors import ArtifactError
from edgekit.exporters.lowering_names import Lowering
from edgekit.formats import FormatName

EXPORT_FILE = "export.json"


class TensorDescription(BaseModel):
    """An input or output of the file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    type: str
    """Element type: `int64`, `float32`."""
    shape: list[int | str]
    """Sizes; a name stands for a size that may change from call to call."""


class OldestReader(BaseModel):
    """The oldest onnxruntime that reads a file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: str
    what: str
    """What in the file older versions do not read."""
    remedy: str
    """What else a person can do than ask for that version."""


class ExportDescription(BaseModel):
    """What was written, and how: what every format says."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: FormatName
    file: str
    """Path of the model inside the directory."""
    precision: Literal["as-is", "float32", "float16"]
    """As in the stage's configuration."""
    notes: list[str]
    """What a person should know."""
    model_digest: str
    """Digest of the model artifact that was exported."""
    first_token_linears: list[str] = []
    """Linears that are computed for the first token alone, because nothing else reaches the logits."""
    lowerings: dict[str, Lowering] = {}
    """Module name to how it is written, where a measurement chose that."""


class OnnxDescription(ExportDescription):
    """The same of an ONNX file, and of what was made from one."""

    opset: int
    """ONNX operator set."""
    ir_version: int
    """ONNX IR version."""
    oldest_reader: OldestReader | None
    """None: nothing in the file asks for more than operator set and IR version do."""
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]
    operators: dict[str, int]
    """Operator (with its domain, if not ONNX's) to the number of its nodes."""


class LiteRTDescription(ExportDescription):
    """The same of a .tflite file."""

    lengths: list[int]
    """Tokens of each signature, ascending; one is called `length_N`."""
    coded_weights: list[str]
    """Modules whose weights are codes."""


class ExecuTorchDescription(ExportDescription):
    """The same of a .pte file."""

    longest: int
    """Tokens of the longest text that it takes."""
    coded_weights: list[str]
    """Modules whose weights are codes."""


class CoreMLDescription(ExportDescription):
    """The same of a Core ML package, which nobody has run where it was written."""

    verified: Literal[False] = False
    """Core ML runs on Apple's systems alone."""
    deployment_target: str
    """Oldest system that reads the package, as coremltools calls it: `iOS16` is macOS 13 too, `iOS18` macOS 15."""
    computes_in: Literal["float32", "float16"]
    """Type of activations."""
    max_length: int
    """Tokens of the longest text; the package takes one text of 1 to so many."""
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]
    coded_weights: list[str]
    """Modules whose weights are codes."""
    interpreted_max_abs_diff: float
    """Largest difference of a logit between the program, interpreted in numpy on some of the vectors, and torch."""


def write_description(directory: Path, description: ExportDescription) -> None:
    """Writes `export.json`."""
    unsaid = None if description.lowerings else {"lowerings"}  # an export without a choice is as it always was
    text = description.model_dump_json(indent=2, exclude=unsaid)
    (directory / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")


def read_description(directory: Path) -> ExportDescription:
    """Returns what `export.json` says for every format.

    Raises:
        ArtifactError: it is missing or not valid.
    """
    file = directory / EXPORT_FILE
    try:
        return ExportDescription.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{file}: missing or not valid. Export the model again.") from error
