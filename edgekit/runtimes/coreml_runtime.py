"""Runs Core ML packages with coremltools, on a Mac: elsewhere Core ML does not exist, and says so.

edgekit is built and tested on Linux: what is below `open` follows coremltools' documentation and was run here with a
stand-in for Core ML's model alone. A package takes one text, so the texts of a batch run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.errors import ModelError
from edgekit.extras import install_command
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

if TYPE_CHECKING:
    from numpy import ndarray

_DEPTH = 3
"""Folders between a package and its program: the file that `model_file` names."""


class CoreMLRuntime:
    """The runtime `coreml`."""

    name = "coreml"
    formats: tuple[str, ...] = ("coreml",)
    libraries: tuple[str, ...] = ("numpy", "coremltools")

    def unavailable_reason(self) -> str | None:
        """Returns None on a Mac with coremltools, else what to do."""
        import platform
        from importlib.util import find_spec

        if platform.system() != "Darwin":
            return (
                "Core ML runs on Apple's systems alone. Run `python verify_on_mac.py`, which lies beside the package, "
                "on a Mac, or build there."
            )
        if find_spec("coremltools") is not None:
            return None
        return f"the package 'coremltools' is not installed. Install it: {install_command('coreml')}"

    def version(self) -> str:
        """Returns the version of the system, which Core ML is a part of."""
        import platform

        return platform.mac_ver()[0]

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session on all of the machine's compute units, as apps use them; Core ML chooses its threads.

        Raises:
            ModelError: Core ML cannot open the package.
        """
        import coremltools

        package = model_file(model).parents[_DEPTH - 1]
        try:
            opened = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit.ALL)
            names = [entry.name for entry in opened.get_spec().description.input]
        except Exception as error:  # Core ML raises RuntimeError and what coremltools raises
            raise ModelError(f"{package}: Core ML cannot open it ({error}). Export it again.") from error
        return CoreMLSession(opened.predict, names)


class CoreMLSession:
    """An open package."""

    def __init__(self, predict: Callable[[dict[str, ndarray]], dict[str, ndarray]], input_names: list[str]) -> None:
        """Takes what runs one text: name to (1, T) int32, to `logits` (1, C)."""
        self._predict = predict
        self.input_names = input_names
        self.output_names = ["logits"]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once for each text of the batch."""
        import numpy as np

        rows = len(inputs[self.input_names[0]])
        found = []
        for row in range(rows):
            given = {name: inputs[name][row : row + 1].astype(np.int32) for name in self.input_names}
            found.append(np.asarray(self._predict(given)["logits"], dtype=np.float32).reshape(1, -1))
        return {"logits": np.concatenate(found)}
