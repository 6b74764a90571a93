"""A session whose model is open in another process, which answers JSON lines as `benchmarking/worker.py` does.

Results come through the pipe, for parity and quality; no time is taken here.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from edgekit import errors
from edgekit.errors import EdgekitError, ModelError

if TYPE_CHECKING:
    from numpy import ndarray

_TAIL_BYTES = 2000


class ProcessSession:
    """A model that is open in a process of its own, which ends with the session."""

    def __init__(
        self, command: Sequence[str], opening: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts the process and opens the model there.

        Args:
            command: the program and its arguments.
            opening: what it is asked to open with.
            environment: its variables; None: those of this process.

        Raises:
            ModelError: the runtime cannot open the file, or the process ended.
            EdgekitError: whatever of edgekit's errors was raised there.
        """
        self._lock = threading.Lock()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        self._process = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=None if environment is None else dict(environment),
        )
        self._end = weakref.finalize(self, _end, self._process, self._errors)
        try:
            opened = self._ask("open", **opening)
        except BaseException:
            self._end()
            raise
        self.input_names: list[str] = opened["input_names"]
        self.output_names: list[str] = opened["output_names"]

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once; a float32 comes through the pipe to the bit.

        Raises:
            ModelError: the process ended, or failed.
            EdgekitError: whatever of edgekit's errors was raised there.
        """
        import numpy

        answer = self._ask("run", inputs={name: inputs[name].tolist() for name in self.input_names})
        return {name: numpy.array(rows, dtype=numpy.float32) for name, rows in answer["outputs"].items()}

    def _ask(self, command: str, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps({"command": command, **fields}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"its process ended{self._tail()}"}
        if "error" in answer:
            kind = getattr(errors, answer.get("type", ""), ModelError)
            is_ours = isinstance(kind, type) and issubclass(kind, EdgekitError)
            raise (kind if is_ours else ModelError)(str(answer["error"]))
        return answer

    def _tail(self) -> str:
        """Returns the end of what the process wrote to its error output, ready to follow; empty where it did not."""
        size = self._errors.seek(0, 2)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        text = self._errors.read().decode("utf-8", errors="replace").strip()
        return f". The end of its error output:\n{text}" if text else ""


def _end(process: subprocess.Popen[str], error_output: IO[bytes]) -> None:
    """Ends the process: it stops at the end of its input."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # of a process that is gone; the stream is closed all the same
                stream.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    error_output.close()
