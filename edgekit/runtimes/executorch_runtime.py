"""Runs .pte files with ExecuTorch's Python runtime and its XNNPACK kernels on the CPU, as an app's do.

The Python runtime imports torch, so the memory of this process is not an app's. A file takes one text at a time, of any
length up to its longest; a batch is run row by row.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from edgekit.errors import EnvironmentLacksError, ModelError, UsageError
from edgekit.extras import install_command
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

if TYPE_CHECKING:
    from numpy import ndarray

METHOD = "forward"
NAMES_METHOD = "input_names"
"""A method of the file without inputs, whose only output is the names of the inputs in their order, with spaces."""

# The pool of threads belongs to the process, and a loaded method keeps a pointer to the one it was loaded under.
_POOL = threading.RLock()


class ExecuTorchRuntime:
    """The runtime `executorch`."""

    name = "executorch"
    formats: tuple[str, ...] = ("executorch",)
    # Not `executorch.runtime`, which imports the compiler besides.
    libraries: tuple[str, ...] = ("numpy", "torch", "executorch.extension.pybindings._C")

    def unavailable_reason(self) -> str | None:
        """Returns None when the runtime is installed, else how to install it."""
        from importlib.util import find_spec

        if find_spec("executorch") is not None:
            return None
        return f"the package 'executorch' is not installed. Install it: {install_command('executorch')}"

    def version(self) -> str:
        """Returns the version of the installed runtime."""
        from importlib.metadata import version

        return version("executorch")

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session with the program of the file.

        Raises:
            ModelError: the runtime cannot read the file, or has no kernel for an operator in it.
            EnvironmentLacksError: the runtime was built without XNNPACK.
        """
        return open_program(model_file(model), threads=config.threads)


class ExecuTorchSession:
    """An open file. The sessions of a process run one call at a time, each with its own number of threads."""

    def __init__(self, file: Path, threads: int) -> None:
        """Loads a file whose program takes int64 arrays (1, T) in the order that it names, and returns logits (1, C).

        Raises:
            ModelError: the file is no such program, or the runtime has no kernel for an operator in it.
        """
        self._file, self._threads = file, threads
        self._method: Any = None
        with _POOL:
            method = self._loaded()
        self.input_names: list[str] = self._names
        self.output_names: list[str] = ["logits"]
        self.longest: int = method.method_meta().input_tensor_meta(0).sizes()[1]
        """Tokens of the longest text that the file takes."""

    def run(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]:
        """Runs the model once for each row of `(B, T)`.

        Raises:
            UsageError: a text is longer than the file takes.
        """
        import numpy as np
        import torch

        arrays = [torch.from_numpy(np.ascontiguousarray(inputs[name], dtype=np.int64)) for name in self.input_names]
        rows, tokens = arrays[0].shape
        if tokens > self.longest:
            raise UsageError(
                f"executorch: found {tokens} tokens, expected at most {self.longest}, which the file was exported for. "
                "Cut the text, or export with a larger task.max_length."
            )
        with _POOL:
            method = self._loaded()
            answers = [method([array[row : row + 1] for array in arrays])[0].numpy() for row in range(rows)]
        return {"logits": np.concatenate(answers)}

    def unload(self) -> None:
        """Forgets the loaded program; the next call loads it again."""
        self._method = None

    def _loaded(self) -> Any:
        """Returns the method, loaded under a pool of this session's threads; `_POOL` must be held."""
        if self._method is None or thread_count() != self._threads:
            _limit_threads(self._threads)
            self._names, self._method = _load(self._file)
            _SESSIONS.add(self)
        return self._method


_SESSIONS: WeakSet[ExecuTorchSession] = WeakSet()


def open_program(file: Path, *, threads: int) -> ExecuTorchSession:
    """Returns a session for a .pte file.

    Raises:
        ModelError: the runtime cannot read the file, or has no kernel for an operator in it.
        EnvironmentLacksError: the runtime was built without XNNPACK.
    """
    if not _bindings()._is_available("XnnpackBackend"):
        raise EnvironmentLacksError(
            "executorch: the installed runtime was built without XNNPACK. Install the published one: "
            f"{install_command('executorch')}"
        )
    return ExecuTorchSession(file, threads)


def thread_count() -> int:
    """Returns the threads that ExecuTorch's kernels use in this process."""
    return int(_bindings()._threadpool_get_thread_count())


def _bindings() -> Any:
    """Returns ExecuTorch's runtime as it is bound to Python; it is linked against torch, which must come first."""
    import torch  # noqa: F401
    from executorch.extension.pybindings import _C

    return _C


def _limit_threads(threads: int) -> None:
    """Makes the pool of the process have so many threads; what is loaded under another pool is unloaded before.

    Raises:
        EnvironmentLacksError: it does not.
    """
    from edgekit.runtimes.silence import silent_library

    with silent_library():
        if thread_count() == threads:
            return
        for session in list(_SESSIONS):
            session.unload()
        _bindings()._unsafe_reset_threadpool(threads)
    if thread_count() != threads:
        raise EnvironmentLacksError(
            f"executorch: found a pool of {thread_count()} threads after asking for {threads}. Ask for fewer."
        )


def _load(file: Path) -> tuple[list[str], Any]:
    """Returns the names of the inputs in their order, and the method.

    Raises:
        ModelError: the runtime cannot read the file, or it is not edgekit's.
    """
    from edgekit.runtimes.silence import silent_library

    try:
        with silent_library():
            program = _bindings()._load_program(str(file))
            found = {program.get_method_name(index) for index in range(program.num_methods())}
            if not {METHOD, NAMES_METHOD} <= found:
                raise ModelError(
                    f"{file}: found the methods {', '.join(sorted(found)) or 'none'}, expected {METHOD} and "
                    f"{NAMES_METHOD}. Export it again."
                )
            names = program.load_method(NAMES_METHOD)([])[0].split()
            return names, program.load_method(METHOD)
    except RuntimeError as error:
        raise ModelError(f"{file}: ExecuTorch cannot open it ({error}). Export it again.") from error
