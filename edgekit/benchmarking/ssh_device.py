"""A device that ssh reaches: a board, a phone or any Linux machine with Python and a runtime.

What a worker needs is a few of edgekit's files, standard library alone (`WORKER_FILES`), and the model's own; both go
into a new directory there, which is removed in the end, whatever happens. ssh itself is the system's, with its keys and
configuration; no password is asked for.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

from edgekit import errors
from edgekit.artifact import Artifact
from edgekit.benchmarking.devices import WORKER_FLAGS, Launch, worker_environment
from edgekit.benchmarking.worker import distribution_of
from edgekit.errors import EnvironmentLacksError, MeasurementError, UsageError
from edgekit.results import Machine
from edgekit.runtimes.protocol import Runtime, model_files

WORKER_FILES = (
    "__init__.py",
    "_version.py",
    "errors.py",
    "extras.py",
    "formats.py",
    "benchmarking/__init__.py",
    "benchmarking/machine.py",
    "benchmarking/memory.py",
    "benchmarking/processor_time.py",
    "benchmarking/worker.py",
    "runtimes/__init__.py",
    "runtimes/litert_runtime.py",
    "runtimes/onnxruntime_runtime.py",
    "runtimes/openvino_runtime.py",
    "runtimes/protocol.py",
    "runtimes/silence.py",
)
"""All of edgekit that a device gets."""

_MODULE = "edgekit.benchmarking.worker"
_CONNECTION_FAILED = 255
_NOT_FOUND = 127
_OLDEST_PYTHON = (3, 11)
_OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)
_BEGIN = (
    'import sys, tempfile; print(sys.version_info[0], sys.version_info[1], tempfile.mkdtemp(prefix="edgekit-worker-"))'
)
_BEGUN = re.compile(r"^(?P<major>\d+) (?P<minor>\d+) (?P<directory>/\S*/edgekit-worker-\w+)\s*\Z", re.MULTILINE)
_UNPACK = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(sys.argv[1])"
_REMOVE = "import shutil, sys; shutil.rmtree(sys.argv[1])"


class SshDevice:
    """A machine that ssh reaches; use it in a `with` statement."""

    is_here = False

    def __init__(self, name: str, python: str = "python3") -> None:
        """Connects to nothing yet.

        Args:
            name: `ssh://USER@HOST:PORT`; user and port may be left to ssh's configuration.
            python: the interpreter there, a name or a path.

        Raises:
            UsageError: the name has no host, or more than these parts.
        """
        try:
            address = urlsplit(name)
            port = address.port
        except ValueError as error:
            raise UsageError(f"device: found '{name}', expected ssh://USER@HOST:PORT: {error}.") from error
        extra = address.path.strip("/") or address.query or address.fragment or address.password
        # names of ssh's configuration have capitals, which `hostname` has not
        target = address.netloc.removesuffix(f":{port}").replace("[", "").replace("]", "")
        if not address.hostname or extra or target.startswith("-") or "@-" in target:
            raise UsageError(f"device: found '{name}', expected ssh://USER@HOST:PORT and no more.")
        self.name, self._python, self._target = name, python, target
        self._ssh = ["ssh", *_OPTIONS, *(["-p", str(port)] if port else [])]
        self._directory = ""
        self._facts: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        self._versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Connects, copies what a worker needs, and asks what machine it is.

        Raises:
            EnvironmentLacksError: there is no ssh, the device cannot be reached, or its Python is missing or too old.
            MeasurementError: the files cannot be written there.
        """
        found, self._directory = self._begin()
        try:
            if found < _OLDEST_PYTHON:
                raise EnvironmentLacksError(
                    f"{self.name}: found Python {found[0]}.{found[1]} as '{self._python}', expected at least "
                    f"{_OLDEST_PYTHON[0]}.{_OLDEST_PYTHON[1]}. Name another one there with --device-python."
                )
            root = Path(errors.__file__).parent
            self._send(((root / file, f"edgekit/{file}") for file in WORKER_FILES), self._directory)
            self._facts = self._ask("facts", libraries=[])
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Removes everything that was copied; a device that is gone keeps it."""
        self._clear()

    def machine(self) -> Machine:
        """Returns its fingerprint."""
        return Machine.model_validate(self._facts["machine"])

    def load_average(self) -> float:
        """Asks for its one-minute load average; -1 where it has none."""
        return float(self._ask("facts", libraries=[])["load_average"])

    def core_count(self) -> int:
        """Returns how many cores a worker may use there; 0 where it does not tell."""
        return len(self._facts["ranked_cores"])

    def choose_cores(self, count: int) -> list[int]:
        """Returns up to `count` of its cores to pin a worker to; empty where that cannot be."""
        return sorted(self._facts["ranked_cores"][:count])

    def version_of(self, runtime: Runtime) -> str:
        """Returns the version of a runtime there.

        Raises:
            EnvironmentLacksError: it, or what it needs, is not installed there.
            UsageError: it does not run there without all of edgekit.
        """
        if runtime.name in self._versions:
            return self._versions[runtime.name]
        file = f"{type(runtime).__module__.removeprefix('edgekit.').replace('.', '/')}.py"
        if not type(runtime).__module__.startswith("edgekit.") or file not in WORKER_FILES:
            raise UsageError(
                f"{self.name}: found the runtime '{runtime.name}', expected one that a device runs without all of "
                "edgekit: onnxruntime, openvino or litert. Export the model, or name another runtime."
            )
        versions = self._ask("facts", libraries=list(runtime.libraries))["libraries"]
        missing = [distribution_of(library) for library, version in versions.items() if version is None]
        if missing:
            raise EnvironmentLacksError(
                f"{self.name}: {' and '.join(missing)} not installed for '{self._python}' there. Install there: "
                f"{self._python} -m pip install {' '.join(missing)}"
            )
        return self._versions.setdefault(runtime.name, versions[runtime.libraries[-1]])

    def path_of(self, model: Artifact) -> str:
        """Returns where the files of a model lie there; they are copied when they are asked for first.

        Raises:
            MeasurementError: the device does not answer, or has no room.
        """
        if model.digest not in self._places:
            place = f"{self._directory}/{model.digest}"
            files = [*model_files(model), *(model.path / name for name in ("config.json",))]
            self._send(((file, str(file.relative_to(model.path))) for file in files if file.is_file()), place)
            self._places[model.digest] = place
        return self._places[model.digest]

    def start(self, launch: Launch, error_output: IO[bytes]) -> subprocess.Popen[str]:
        """Starts a worker there; it ends when the connection does."""
        return subprocess.Popen(
            [*self._ssh, self._target, self._worker(launch.module, launch.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=error_output,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def fate(self, exit_code: int) -> str | None:
        """Says that the connection was lost where ssh itself failed."""
        return f"is gone: the connection to {self.name} was lost" if exit_code == _CONNECTION_FAILED else None

    def _worker(self, module: str, threads: int) -> str:
        variables = {**worker_environment(threads), "PYTHONPATH": self._directory}
        settings = [f"{name}={value}" for name, value in variables.items()]
        return "exec " + shlex.join(["env", *settings, self._python, *WORKER_FLAGS, module])

    def _begin(self) -> tuple[tuple[int, int], str]:
        """Returns the version of Python there and the name of a new directory."""
        try:
            done = self._run([self._python, "-c", _BEGIN])
        except FileNotFoundError:
            raise EnvironmentLacksError(
                f"{self.name}: the program 'ssh' is not installed here. Install it: apt-get install openssh-client"
            ) from None
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        reason = said[-1] if said else "it gave no reason"
        if done.returncode == _CONNECTION_FAILED:
            raise EnvironmentLacksError(
                f"{self.name}: cannot be reached ({reason}). Expected that `{shlex.join(['ssh', self._target])}` "
                "works without a password: a key, the right host and port, and the host's own key known."
            )
        if done.returncode == _NOT_FOUND:
            raise EnvironmentLacksError(
                f"{self.name}: found no Python '{self._python}' there ({reason}). Install Python 3.11 or newer, or "
                "name its path with --device-python."
            )
        # a shell's greeting may come first; and nothing but what was made here may ever be removed
        found = _BEGUN.search(done.stdout.decode("utf-8", errors="replace"))
        if done.returncode or found is None:
            raise EnvironmentLacksError(f"{self.name}: '{self._python}' does not work there ({reason}).")
        return (int(found["major"]), int(found["minor"])), found["directory"]

    def _ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Returns the answer of a worker that is started for this one question."""
        question = json.dumps({"command": command, **fields}) + "\n"
        done = self._run_line(self._worker(_MODULE, 1), question.encode())
        line = done.stdout.decode("utf-8", errors="replace").splitlines()
        answer: dict[str, Any] = json.loads(line[0]) if line else {"error": self._reason(done)}
        if "error" in answer:
            raise MeasurementError(f"{self.name}: a worker does not start there: {answer['error']}")
        return answer

    def _send(self, files: Iterable[tuple[Path, str]], place: str) -> None:
        """Writes files, each under a name of its own, into the directory `place` there."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for file, name in files:
                archive.add(file.resolve(), arcname=name)
        done = self._run([self._python, "-c", _UNPACK, place], packed.getvalue())
        if done.returncode:
            raise MeasurementError(f"{self.name}: files could not be copied there: {self._reason(done)}")

    def _clear(self) -> None:
        if self._directory:
            self._run([self._python, "-c", _REMOVE, self._directory])
            self._directory = ""

    def _run(self, command: list[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self._run_line(shlex.join(command), given)

    def _run_line(self, line: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
        """Runs a line of shell there."""
        return subprocess.run([*self._ssh, self._target, line], input=given, capture_output=True, check=False)

    @staticmethod
    def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        return said[-1] if said else f"exit code {done.returncode}"
