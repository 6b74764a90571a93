"""Runs ONNX files with onnxruntime on the CPU, set up as an app on a device would set it up.

- Threads: `config.threads` within an operator, operators one after another, no spinning. A spinning pool answers a
  call that follows at once a little sooner and burns a core for the rest; an app on a battery must not
  (Windows ML, too, turns it off). With one thread there is no pool and the setting has no effect.

Nothing is set that would change a result: an app that opens the file with default options computes the same. Signed
int8 weights saturate in the kernel for x86 without VNNI; that is prevented in the codes (`reduce_range`), not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import EnvironmentLacksError, ModelError
from edgekit.extras import install_command
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy import ndarray

PROVIDER = "CPUExecutionProvider"

SESSION_SETTINGS = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}
"""Configuration entries of every session; an app that ships the model sets the same."""

_QUIET = 3  # errors and worse; warnings about graph details are no news to a user


class OnnxRuntime:
    """The runtime `onnxruntime`."""

    name = "onnxruntime"
    formats: tuple[str, ...] = ("onnx", "ort")
    libraries: tuple[str, ...] = ("numpy", "onnxruntime")

    def unavailable_reason(self) -> str | None:
        """Returns None when onnxruntime is installed, else how to install it."""
        from importlib.util import find_spec

        if find_spec("onnxruntime") is not None:
            return None
        return f"the package 'onnxruntime' is not installed. Install it: {install_command('run')}"

    def version(self) -> str:
        """Returns the version of the installed onnxruntime."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("onnxruntime")
        except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
            import onnxruntime

            return str(onnxruntime.__version__)

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session on the CPU provider, and on nothing else.

        Raises:
            ModelError: onnxruntime cannot open the file.
            EnvironmentLacksError: this build of onnxruntime has no CPU provider.
        """
        return OnnxSession(open_file(model_file(model), session_options(config)))


class OnnxSession:
    """An ONNX file, open."""

    def __init__(self, session: Any) -> None:
        """Wraps an `onnxruntime.InferenceSession`."""
        self._session = session
        self.input_names: list[str] = [value.name for value in session.get_inputs()]
        self.output_names: list[str] = [value.name for value in session.get_outputs()]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once; float16 outputs are widened to float32.

        Raises:
            ModelError: a kernel fails.
        """
        feeds = {name: inputs[name] for name in self.input_names}
        try:
            outputs = self._session.run(self.output_names, feeds)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(f"onnxruntime cannot run the model: {error}") from error
        return {
            name: output.astype("float32") if output.dtype == "float16" else output
            for name, output in zip(self.output_names, outputs, strict=True)
        }


def open_file(file: Path, options: Any) -> Any:
    """Returns an `onnxruntime.InferenceSession` on the CPU provider, and on nothing else.

    Raises:
        ModelError: onnxruntime cannot open the file.
        EnvironmentLacksError: this build of onnxruntime has no CPU provider.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(
            f"{file}: onnxruntime {onnxruntime.__version__} cannot open it ({_first_line(error)}). "
            "Export it again, with an opset that this version reads."
        ) from error
    # An absent provider is only a warning to onnxruntime.
    if session.get_providers() != [PROVIDER]:
        raise EnvironmentLacksError(
            f"onnxruntime runs on {session.get_providers()}, expected [{PROVIDER}]. Install the CPU package."
        )
    return session


def session_options(config: SessionConfig) -> Any:
    """Returns the `onnxruntime.SessionOptions` that edgekit measures and checks with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if config.graph_optimization else levels.ORT_DISABLE_ALL
    options.log_severity_level = _QUIET
    for key, value in SESSION_SETTINGS.items():
        options.add_session_config_entry(key, value)
    return options


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
