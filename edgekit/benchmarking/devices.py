"""Where a measuring process runs: on this machine, or on a device that ssh reaches.

A device is asked what it is, gets the files of models, and starts workers that speak as `worker.py` does. It knows
nothing of what is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgekit import errors
from edgekit.artifact import Artifact
from edgekit.benchmarking.machine import choose_cores, load_average, machine_fingerprint, usable_cores
from edgekit.emulation.processors import EMULATED
from edgekit.errors import UsageError
from edgekit.results import Machine
from edgekit.runtimes.protocol import Runtime

SSH = "ssh://"


@dataclass(frozen=True)
class Launch:
    """Which worker is started, and how."""

    module: str
    """What Python runs."""
    threads: int
    """Size of its thread pools."""
    program: list[str]
    """The command of a worker that is no Python; empty: the module."""
    cores: list[int]
    """What it is pinned to; Python pins itself."""


class Device(Protocol):
    """A machine that workers run on."""

    name: str
    """As a person asked for it."""
    is_here: bool
    """Whether it is this machine, whose kernel can be asked about a worker."""

    def machine(self) -> Machine:
        """Returns its fingerprint."""

    def load_average(self) -> float:
        """Returns its one-minute load average; -1 where it has none."""

    def core_count(self) -> int:
        """Returns how many cores a worker may use there; 0 where it does not tell."""

    def choose_cores(self, count: int) -> list[int]:
        """Returns up to `count` of its cores to pin a worker to; empty where that cannot be."""

    def version_of(self, runtime: Runtime) -> str:
        """Returns the version of a runtime there.

        Raises:
            EnvironmentLacksError: it is not installed there.
            UsageError: it does not run there without all of edgekit.
        """

    def path_of(self, model: Artifact) -> str:
        """Returns where the files of a model lie there; they are copied when they are asked for first.

        Raises:
            MeasurementError: the device does not answer, or has no room.
        """

    def start(self, launch: Launch, error_output: IO[bytes]) -> subprocess.Popen[str]:
        """Starts a worker, which talks through the pipes of the process returned."""

    def fate(self, exit_code: int) -> str | None:
        """Says how a worker ended where the exit code is the device's and not the worker's; else None."""


class ThisMachine:
    """The machine that edgekit runs on."""

    name = "local"
    is_here = True

    def machine(self) -> Machine:
        """Returns its fingerprint."""
        return machine_fingerprint()

    def load_average(self) -> float:
        """Returns its one-minute load average; -1 where it has none."""
        return load_average()

    def core_count(self) -> int:
        """Returns how many cores this process may use; 0 where the system does not tell."""
        return len(usable_cores())

    def choose_cores(self, count: int) -> list[int]:
        """Returns up to `count` cores to pin a worker to; empty where that cannot be."""
        return choose_cores(count)

    def version_of(self, runtime: Runtime) -> str:
        """Returns the version of a runtime, which is installed: it was chosen among those that are."""
        return runtime.version()

    def path_of(self, model: Artifact) -> str:
        """Returns where the model is."""
        return str(model.path.resolve())

    def start(self, launch: Launch, error_output: IO[bytes]) -> subprocess.Popen[str]:
        """Starts a worker with this process's environment and import path; one that is no Python is pinned here."""
        paths = [str(Path(errors.__file__).parent.parent), *(entry or str(Path.cwd()) for entry in sys.path)]
        python_path = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        with _pinned(launch.cores if launch.program else []):
            return subprocess.Popen(
                launch.program or [sys.executable, *WORKER_FLAGS, launch.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error_output,
                text=True,
                encoding="utf-8",
                env={**os.environ, **worker_environment(launch.threads), **python_path},
                start_new_session=True,  # Ctrl-C goes to the parent, which ends the child in order
            )

    def fate(self, exit_code: int) -> str | None:
        """Returns None: every exit code is the worker's."""
        return None


HERE = ThisMachine()

WORKER_FLAGS = ("-P", "-X", "faulthandler", "-m")
"""How Python runs a worker's module."""


def worker_environment(threads: int) -> dict[str, str]:
    """Returns the variables that every worker has: thread pools of the right size, no network, no warnings of forks."""
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**pools, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def refuse_emulated(name: str) -> None:
    """Refuses to measure on an emulated device.

    Raises:
        UsageError: the device called `name` is one.
    """
    if name.startswith(EMULATED):
        raise UsageError(
            f"device: found '{name}', expected 'local' or '{SSH}USER@HOST': an emulated instruction takes this "
            "machine's time and the emulator's memory, so latency and memory of the device are not to be had from it. "
            "It is for parity: edgekit check EXPORT OUT --reference MODEL --data DATA --device " + name
        )


@contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    """Pins this thread, and so what it starts, while the block runs."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def open_device(name: str, python: str) -> Iterator[Device]:
    """Yields the device called `name`, `local` or `ssh://USER@HOST:PORT`; what it needed there is gone afterwards.

    Args:
        name: as above.
        python: the interpreter on another machine, a name or a path there.

    Raises:
        UsageError: the name is none of these, or an emulated device.
        EnvironmentLacksError: the device cannot be reached, or has no such Python.
    """
    refuse_emulated(name)
    if name == HERE.name:
        yield HERE
        return
    if not name.startswith(SSH):
        raise UsageError(
            f"device: found '{name}', expected 'local' or '{SSH}USER@HOST', with ':PORT' where it is not 22."
        )
    from edgekit.benchmarking.ssh_device import SshDevice

    with SshDevice(name, python) as device:
        yield device
