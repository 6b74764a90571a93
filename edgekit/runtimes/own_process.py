"""A session whose model is open in a program of its own, which speaks JSON lines: Node.js, a browser, an emulator.

For parity and quality only: arrays go through the pipe. A program is measured by itself, see `benchmarking/worker.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgekit import errors
from edgekit.errors import EdgekitError, MeasurementError, ModelError
from edgekit.runtimes.protocol import ModelOnDisk, OwnProcess, SessionConfig

if TYPE_CHECKING:
    from numpy import ndarray

_PATIENCE_S = 5.0
_TAIL_BYTES = 2000


def open_session(runtime: OwnProcess, model: ModelOnDisk, config: SessionConfig) -> ProgramSession:
    """Returns a session of a runtime that is a program.

    Raises:
        ModelError: the model cannot be opened.
        EnvironmentLacksError: the program lacks something.
        MeasurementError: it ended.
    """
    settings = {"threads": config.threads, "graph_optimization": config.graph_optimization}
    return ProgramSession(Program(runtime.program()), {**settings, **runtime.describe(model)})


class ProgramSession:
    """A model that is open in a program, which ends with the session."""

    def __init__(self, program: Program, opening: Mapping[str, Any]) -> None:
        """Opens the model in a program that has started; `opening` is what it is asked with.

        Raises:
            EdgekitError: the one that was raised there; ModelError where it was none of edgekit's.
            MeasurementError: the program ended.
        """
        self._program = program
        try:
            opened = program.ask("open", **opening)
        except BaseException:
            program.end()
            raise
        self.input_names: list[str] = opened["input_names"]
        self.output_names: list[str] = opened["output_names"]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once; a float32 comes through the pipe to the bit.

        Raises:
            ModelError: the runtime fails.
            MeasurementError: the program ended.
        """
        import numpy

        answer = self._program.ask("run", inputs={name: inputs[name].tolist() for name in self.input_names})
        return {name: numpy.array(rows, dtype=numpy.float32) for name, rows in answer["outputs"].items()}


class Program:
    """A process that answers one JSON line with one; it ends with this object."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts it; without `environment` a Python program finds edgekit where this process has it."""
        self._lock, self._name = threading.Lock(), command[0]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        self.process = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_own_environment() if environment is None else dict(environment),
        )
        self.end = weakref.finalize(self, _end, self.process, self._errors)
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
            raise MeasurementError(f"{self._name} ended during '{command}'.{self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, str(answer.get("type")), None)
            known = isinstance(kind, type) and issubclass(kind, EdgekitError)
            raise (kind if known and kind is not None else ModelError)(str(answer["error"]))
        return answer

    def _tail(self) -> str:
        """Returns the end of what the process wrote to its error output, as a further sentence; empty without any."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        text = self._errors.read().decode("utf-8", errors="replace").strip()
        return f" The end of its error output:\n{text}" if text else ""


def _own_environment() -> dict[str, str]:
    """Returns this process's variables, with the place of edgekit among those where Python looks for modules."""
    paths = [str(Path(errors.__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _end(process: subprocess.Popen[str], error_output: IO[bytes]) -> None:
    """Ends the process: it stops at the end of its input."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # it ended before it read what was left to write
                stream.close()
    try:
        process.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    error_output.close()
