"""LiteRT as an edgekit runtime, so that the measuring process runs it by the same protocol as the built-in ones.

`edgekit.benchmarking.worker` opens it inside LiteRT's own environment: this module needs numpy and ai-edge-litert.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from numpy.typing import NDArray

from edgekit.runtimes.protocol import ModelOnDisk, SessionConfig

# litert-torch 0.10.0 puts the mask first whatever order the arguments had; `litert_peer.py` checks that it still does.
ARGUMENTS = ("attention_mask", "input_ids")

Arrays = dict[str, NDArray[Any]]


class LiteRTSession:
    """An open .tflite file with fixed shapes; the XNNPACK delegate is on, as it is by default in an app."""

    def __init__(self, file: str, threads: int) -> None:
        """Opens `file`."""
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(file, num_threads=threads)
        self.interpreter.allocate_tensors()
        # Positional: "serving_default_args_0" is the first argument of what `litert_peer.py` converts.
        details = sorted(self.interpreter.get_input_details(), key=lambda detail: str(detail["name"]))
        self._inputs = dict(zip(ARGUMENTS, details, strict=True))
        self._output = self.interpreter.get_output_details()[0]["index"]
        self.input_names = list(self._inputs)
        self.output_names = ["logits"]

    def run(self, inputs: Arrays) -> Arrays:
        """Returns `logits` (1, C) float32 for int64 arrays (1, T) of the length that the file was converted for."""
        for name, detail in self._inputs.items():  # the converter turned int64 inputs into int32
            self.interpreter.set_tensor(detail["index"], inputs[name].astype(detail["dtype"]))
        self.interpreter.invoke()
        return {"logits": self.interpreter.get_tensor(self._output)}


class LiteRTRuntime:
    """LiteRT's interpreter with XNNPACK, on the CPU."""

    name = "litert"
    formats = ("tflite",)
    libraries = ("numpy", "ai_edge_litert.interpreter")

    def unavailable_reason(self) -> str | None:
        """Returns None when ai-edge-litert is installed, else what to install."""
        from importlib.util import find_spec

        return None if find_spec("ai_edge_litert") else "ai-edge-litert is not installed; pip install ai-edge-litert"

    def version(self) -> str:
        """Returns the version of ai-edge-litert."""
        return version("ai-edge-litert")

    def open(self, model: ModelOnDisk, config: SessionConfig) -> LiteRTSession:
        """Returns a session for the .tflite file at `model.path`."""
        return LiteRTSession(str(model.path), config.threads)
