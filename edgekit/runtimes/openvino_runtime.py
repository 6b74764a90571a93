"""Runs files of its own format, and ONNX files, with OpenVINO on the CPU.

OpenVINO reads both dialects of edgekit's ONNX exports: it knows the operators of onnxruntime that classifiers need.
Left to itself it rounds where nobody asked: floats to bf16 where the processor has it, and the activations before
compressed weights to 8 bits in groups of 32. The first is turned off here, and for ONNX files the second too. A file
of the format `openvino` says itself whether its student's activations are rounded.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from edgekit.errors import EnvironmentLacksError, ModelError
from edgekit.extras import install_command
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, format_of, model_file

if TYPE_CHECKING:
    from numpy import ndarray

DEVICE = "CPU"

SESSION_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": "NO",  # the harness pins the process, and a phone's scheduler must be free to choose
    "INFERENCE_PRECISION_HINT": "f32",
}
"""Properties of every compiled model; an app that ships the model sets the same."""

_FLOAT_ACTIVATIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


class OpenVinoRuntime:
    """The runtime `openvino`."""

    name = "openvino"
    formats: tuple[str, ...] = ("openvino", "onnx")
    libraries: tuple[str, ...] = ("numpy", "openvino")

    def unavailable_reason(self) -> str | None:
        """Returns None when OpenVINO is installed, else how to install it."""
        from importlib.util import find_spec

        if find_spec("openvino") is not None:
            return None
        return f"the package 'openvino' is not installed. Install it: {install_command('openvino')}"

    def version(self) -> str:
        """Returns the version of the installed OpenVINO."""
        from importlib.metadata import version

        return version("openvino")

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session on the CPU plugin.

        Raises:
            ModelError: OpenVINO cannot read the file, or has no kernel for an operator in it.
            EnvironmentLacksError: this build of OpenVINO has no CPU plugin.
        """
        import openvino

        core, file = openvino.Core(), model_file(model)
        if DEVICE not in core.available_devices:
            raise EnvironmentLacksError(
                f"OpenVINO has the devices {core.available_devices}, expected {DEVICE} among them. Install the package "
                "'openvino' anew."
            )
        try:
            properties = {**session_settings(format_of(model)), "INFERENCE_NUM_THREADS": str(config.threads)}
            read = core.read_model(file)
            # before it is compiled: where a node is dropped, the one before it has the names of both
            outputs = [port.get_any_name() for port in read.outputs]
            compiled = core.compile_model(read, DEVICE, properties)
        except Exception as error:  # OpenVINO raises RuntimeError and what its frontends raise
            advice = ", with the dialect 'standard' where an operator is unknown" if file.suffix == ".onnx" else ""
            raise ModelError(
                f"{file}: OpenVINO {self.version()} cannot open it ({reason(error)}). Export it again{advice}."
            ) from error
        return OpenVinoSession(compiled, outputs)


class OpenVinoSession:
    """A compiled model; each thread that calls it has a request of its own."""

    def __init__(self, compiled: Any, output_names: list[str]) -> None:
        """Wraps an `openvino.CompiledModel` whose outputs have these names, in order."""
        self._compiled = compiled
        self._own = threading.local()
        self.input_names: list[str] = [port.get_any_name() for port in compiled.inputs]
        self.output_names = output_names

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once; float16 outputs are widened to float32."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        request.infer([inputs[name] for name in self.input_names], share_inputs=True)
        outputs = (request.get_output_tensor(index).data for index in range(len(self.output_names)))
        # the request's own memory is overwritten by its next call
        return {name: output.astype("float32") for name, output in zip(self.output_names, outputs, strict=True)}


def session_settings(kind: str) -> dict[str, str]:
    """Returns the properties that a model of the format `kind` is compiled with, the number of threads aside."""
    return SESSION_SETTINGS if kind == "openvino" else {**SESSION_SETTINGS, **_FLOAT_ACTIVATIONS}


def reason(error: Exception) -> str:
    """Returns the last line of OpenVINO's message, which says what is wrong; those before say where in its sources."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
