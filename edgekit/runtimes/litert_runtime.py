"""Runs .tflite files with LiteRT's interpreter and its XNNPACK kernels on the CPU, as an Android app does.

A file has fixed shapes, one signature for each length; a text is padded up to the next, and a batch is run row by row.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, UsageError
from edgekit.extras import install_command
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

if TYPE_CHECKING:
    from numpy import ndarray

_SIGNATURE = re.compile(r"length_(\d+)")


class LiteRTRuntime:
    """The runtime `litert`."""

    name = "litert"
    formats: tuple[str, ...] = ("litert",)
    libraries: tuple[str, ...] = ("numpy", "ai_edge_litert.interpreter")

    def unavailable_reason(self) -> str | None:
        """Returns None when the interpreter is installed, else how to install it."""
        from importlib.util import find_spec

        if find_spec("ai_edge_litert") is not None:
            return None
        return f"the package 'ai-edge-litert' is not installed. Install it: {install_command('litert')}"

    def version(self) -> str:
        """Returns the version of the installed interpreter."""
        from importlib.metadata import version

        return version("ai-edge-litert")

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session with every signature of the file.

        Raises:
            ModelError: the interpreter cannot read the file, or has no kernel for an operator in it.
        """
        return open_signatures(model_file(model), threads=config.threads)


class LiteRTSession:
    """An open file; the interpreter runs one call at a time."""

    def __init__(self, interpreter: Any) -> None:
        """Wraps an `ai_edge_litert` interpreter whose signatures are called after their lengths."""
        self._interpreter = interpreter
        self._lock = threading.Lock()
        signatures = interpreter.get_signature_list()
        found = {int(match[1]): name for name in signatures if (match := _SIGNATURE.fullmatch(name))}
        self._names = dict(sorted(found.items()))
        self._runners: dict[int, Any] = {}
        first = signatures[self._names[min(self._names)]]
        known = {name: place for place, name in enumerate(["input_ids", "attention_mask", "token_type_ids"])}
        self.input_names: list[str] = sorted(first["inputs"], key=lambda name: (known.get(name, len(known)), name))
        self.output_names: list[str] = list(first["outputs"])

    @property
    def lengths(self) -> list[int]:
        """Returns the tokens of each signature, ascending."""
        return list(self._names)

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once for each row of `(B, T)`.

        Raises:
            UsageError: a text is longer than the longest signature.
        """
        import numpy as np

        arrays = [inputs[name] for name in self.input_names]
        rows, tokens = arrays[0].shape
        length = next((length for length in self._names if length >= tokens), None)
        if length is None:
            raise UsageError(
                f"litert: found {tokens} tokens, expected at most {max(self._names)}, the longest signature of the "
                "file. Cut the text, or export more lengths."
            )
        padded = [np.pad(array, ((0, 0), (0, length - tokens))).astype(np.int32) for array in arrays]
        with self._lock:
            runner = self._runner(length)
            answers = [
                runner(**{name: array[row : row + 1] for name, array in zip(self.input_names, padded, strict=True)})
                for row in range(rows)
            ]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in self.output_names}

    def _runner(self, length: int) -> Any:
        from edgekit.runtimes.silence import silent_stderr

        if length not in self._runners:
            with silent_stderr():
                self._runners[length] = self._interpreter.get_signature_runner(self._names[length])
        return self._runners[length]


def open_signatures(file: Path, *, threads: int) -> LiteRTSession:
    """Returns a session for a .tflite file.

    Raises:
        ModelError: the interpreter cannot read it, or it has no signature called after a length.
    """
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.runtimes.silence import silent_stderr

    try:
        with silent_stderr():
            interpreter = Interpreter(str(file), num_threads=threads)
        signatures = interpreter.get_signature_list()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{file}: LiteRT cannot open it ({error}). Export it again.") from error
    if not any(_SIGNATURE.fullmatch(name) for name in signatures):
        raise ModelError(
            f"{file}: found the signatures {', '.join(signatures) or 'none'}, expected some called after a length, as "
            "length_32. Export it again."
        )
    return LiteRTSession(interpreter)
