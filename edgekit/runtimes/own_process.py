"""A session whose model is open in a program of its own, which speaks JSON lines: Node.js, a browser.

For parity and quality only: arrays go through the pipe. A program is measured by itself, see `benchmarking/worker.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import errors
from edgekit.errors import EdgekitError, MeasurementError, ModelError
from edgekit.runtimes.protocol import ModelOnDisk, OwnProcess, SessionConfig

if TYPE_CHECKING:
    from numpy import ndarray

_PATIENCE_S = 5.0


class ProgramSession:
    """A model that is open in a program, which ends with the session."""

    def __init__(self, runtime: OwnProcess, model: ModelOnDisk, config: SessionConfig) -> None:
        """Starts the program and opens the model there.

        Raises:
            ModelError: the model cannot be opened.
            EnvironmentLacksError: the program lacks something.
            MeasurementError: it ended.
        """
        self._program = Program(runtime.program())
        settings = {"threads": config.threads, "graph_optimization": config.graph_optimization}
        try:
            opened = self._program.ask("open", **settings, **runtime.describe(model))
        except BaseException:
            self._program.end()
            raise
        self.input_names: list[str] = opened["input_names"]
        self.output_names: list[str] = opened["output_names"]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once.

        Raises:
            ModelError: the runtime fails.
            MeasurementError: the program ended.
        """
        import numpy

        answer = self._program.ask("run", inputs={name: inputs[name].tolist() for name in self.input_names})
        return {name: numpy.array(rows, dtype=numpy.float32) for name, rows in answer["outputs"].items()}


class Program:
    """A process that answers one JSON line with one; it ends with this object."""

    def __init__(self, command: Sequence[str]) -> None:
        """Starts it; a Python program finds edgekit where this process has it."""
        paths = [str(Path(errors.__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._lock, self._name = threading.Lock(), command[0]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.end = weakref.finalize(self, _end, self.process)
        """Ends it now; called with the object's end anyway."""

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Returns the answer to one question; several threads may ask.

        Raises:
            EdgekitError: the one that was raised there; ModelError where it was none of edgekit's.
            MeasurementError: the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._lock:
            try:
                self.process.stdin.write(json.dumps({"command": command, **fields}) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            raise MeasurementError(f"{self._name} ended during '{command}': see its error output.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, str(answer.get("type")), None)
            known = isinstance(kind, type) and issubclass(kind, EdgekitError)
            raise (kind if known and kind is not None else ModelError)(str(answer["error"]))
        return answer


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process: it stops at the end of its input."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:  # it ended before it read what was left to write
                continue
    try:
        process.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
