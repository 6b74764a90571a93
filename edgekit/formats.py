"""The table of file formats: which file an exported model is, what runs it, and which tasks it can hold.

An export's artifact has the kind of its format; a bundle holds an export's files unchanged, so that its format is told
by the file that is there. This module imports nothing heavy: the process that measures memory imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FormatName = Literal["onnx", "openvino", "ort", "litert", "executorch", "coreml", "gguf"]


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    file: str
    """Where the model lies in an artifact and in a bundle."""
    parts: str
    """Files beside it that belong to the model: a pattern for `Path.glob`, with `{name}` and `{stem}` of the file."""
    runtime: str
    """The runtime that ships it, unless a recipe names another."""
    tasks: tuple[str, ...]
    """Kinds of task whose models it can hold."""
    limitation: str
    """Why it holds no others, as a clause for people; empty where it holds all."""
    has_versions: bool
    """Whether a target's operator set and IR version bound what the file may hold."""
    converter: str | None = None
    """The package that writes the file from a graph, whose version decides on it; None: edgekit writes it."""
    runs_elsewhere: bool = False
    """Whether it is written on systems that cannot run it: there it is unverified."""
    fixed_lengths: bool = False
    """Whether a file is made for some lengths of text, `ExportConfig.lengths`."""


FORMATS: dict[str, Format] = {
    "onnx": Format("onnx/model.onnx", "{name}*", "onnxruntime", ("text-classification", "causal-lm"), "", True),
    "openvino": Format(
        "openvino_model.xml",
        "{stem}.bin",
        "openvino",
        ("text-classification",),
        "keys and values are kept by onnxruntime's own operators",
        False,
        "openvino",
    ),
    "ort": Format(
        "model.ort",
        "{name}",
        "onnxruntime",
        ("text-classification",),
        "language models are written as onnx, gguf alone",
        True,
        "onnxruntime",
    ),
    "litert": Format(
        "model.tflite",
        "{name}",
        "litert",
        ("text-classification",),
        "language models are written as onnx, gguf alone",
        False,
        "litert-torch",
        fixed_lengths=True,
    ),
    "executorch": Format(
        "model.pte",
        "{name}",
        "executorch",
        ("text-classification",),
        "language models are written as onnx, gguf alone",
        False,
        "executorch",
    ),
    "coreml": Format(
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "weights/*",
        "coreml",
        ("text-classification",),
        "language models are written as onnx, gguf alone",
        False,
        "coremltools",
        runs_elsewhere=True,
    ),
    "gguf": Format("model.gguf", "{name}*", "llama.cpp", ("causal-lm",), "llama.cpp runs language models", False),
}
"""Format name to what is known of it; `FormatName` lists the same names for type checkers."""

assert tuple(FORMATS) == get_args(FormatName)
