"""A processor that QEMU emulates, with a small arm64 system and the runtimes' own packages for it.

The worker is the one of measurements, started behind the emulator: its files are on this machine, so nothing is
copied. What it runs are the kernels that the processor would run; how long they take here says nothing of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit import errors
from edgekit.emulation.processors import Processor, get_processor, place_of
from edgekit.errors import EnvironmentLacksError, UsageError
from edgekit.results import Emulation
from edgekit.runtimes.own_process import Program, ProgramSession
from edgekit.runtimes.protocol import ModelOnDisk, Runtime, Session, SessionConfig

PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")
"""Names of QEMU's emulator of a process; distributions differ."""

WHEELS = {"numpy": "2.4.6", "onnxruntime": "1.32.0", "ai-edge-litert": "2.3.0"}
"""The packages for arm64, each at the version that edgekit's constraints have for this machine."""

RUNTIMES = ("onnxruntime", "litert")
"""The runtimes that these packages are."""

ROOT, PACKAGES, RECORD = "root", "packages", "prepared.json"
"""Parts of a prepared place: the arm64 system, the wheels, and what was put there."""

# The package alone, not the directory that holds it, where other packages for this machine may lie.
_LAUNCH = (
    "import runpy, sys, types; edgekit = types.ModuleType('edgekit'); edgekit.__path__ = [sys.argv[1]]; "
    "sys.modules['edgekit'] = edgekit; runpy.run_module('edgekit.benchmarking.worker', run_name='__main__')"
)


class Prepared(BaseModel):
    """What a prepared place holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    """The device that it was made for."""
    python: str
    """Name of the interpreter in the system's `usr/bin`."""
    wheels: dict[str, str]
    """Version by package."""
    system: list[str]
    """Files of the distribution's packages: name, version and architecture of each."""


@dataclass(frozen=True)
class EmulatedDevice:
    """An emulated processor that is ready to run models."""

    processor: Processor
    place: Path
    """Directory with the parts above."""
    program: str
    """Path of the emulator."""
    python: str
    """Name of the interpreter in the system's `usr/bin`."""

    @property
    def name(self) -> str:
        """Returns the name that people type."""
        return self.processor.device

    @property
    def command(self) -> list[str]:
        """Returns the command of a worker; no package of this machine is found by it."""
        root = self.place / ROOT
        emulator = [self.program, "-cpu", self.processor.name, "-L", str(root)]
        python = [str(root / "usr" / "bin" / self.python), "-S", "-P", "-X", "faulthandler"]
        return [*emulator, *python, "-c", _LAUNCH, str(Path(errors.__file__).parent)]

    def environment(self, threads: int) -> dict[str, str]:
        """Returns a worker's variables; this machine's own, such as preloaded libraries, are not for it."""
        variables = {"PYTHONPATH": str(self.place / PACKAGES), "PYTHONUTF8": "1", "OMP_NUM_THREADS": str(threads)}
        return {**{name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}, **variables}

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer of a worker that is started for this one question.

        Raises:
            EnvironmentLacksError: it does not start; says how to prepare the device anew.
        """
        done = subprocess.run(
            self.command,
            input=json.dumps(question) + "\n",
            env=self.environment(1),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode or not answer or "error" in answer:
            said = [answer.get("error", ""), *done.stderr.strip().splitlines()[-1:], f"exit code {done.returncode}"]
            raise EnvironmentLacksError(
                f"{self.name}: a worker does not start under {self.program} ({next(filter(None, said))}). Prepare the "
                f"device anew: remove {self.place}, then {prepare_command(self.processor)}"
            )
        return answer

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Returns what a worker says of the processor and the packages there, asked once.

        Raises:
            EnvironmentLacksError: it does not start.
        """
        return self.ask({"command": "facts", "libraries": [name.replace("-", "_") for name in WHEELS]})

    def describe(self) -> Emulation:
        """Returns what the emulated processor is, as a worker on it sees it.

        Raises:
            EnvironmentLacksError: a worker does not start.
        """
        machine = self.facts["machine"]
        return Emulation(
            device=self.name,
            cpu=f"{self.processor.title} ({machine['cpu']})",
            architecture=machine["architecture"],
            cpu_features=machine["cpu_features"],
            emulator=_version_of(self.program),
        )

    def runtime(self, runtime: Runtime) -> EmulatedRuntime:
        """Returns a runtime that opens models here instead.

        Raises:
            UsageError: the device was not prepared with it.
        """
        if runtime.name not in RUNTIMES:
            raise UsageError(
                f"{self.name}: found the runtime '{runtime.name}', expected {' or '.join(RUNTIMES)}, those that the "
                "device is prepared with. Name one of them, and export the model for it."
            )
        return EmulatedRuntime(self, runtime)


class EmulatedRuntime:
    """A runtime whose sessions run on an emulated processor."""

    def __init__(self, device: EmulatedDevice, runtime: Runtime) -> None:
        """Takes the runtime's name and class; its library need not be installed on this machine."""
        self.name, self.formats, self.libraries = runtime.name, runtime.formats, runtime.libraries
        self._device, self._class = device, type(runtime)

    def unavailable_reason(self) -> str | None:
        """Returns None: the device is prepared."""
        return None

    def version(self) -> str:
        """Returns the version of the runtime on the device.

        Raises:
            EnvironmentLacksError: a worker does not start there.
        """
        return str(self._device.facts["libraries"][self.libraries[-1].partition(".")[0]])

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session in an emulated process of its own, which ends with it.

        Raises:
            ModelError: the runtime there cannot open the file.
            MeasurementError: the process ended.
        """
        opening = {
            "runtime": f"{self._class.__module__}:{self._class.__qualname__}",
            "path": str(model.path.resolve()),
            "kind": model.kind,
            "threads": config.threads,
            "cores": [],
            "graph_optimization": config.graph_optimization,
        }
        program = Program(self._device.command, self._device.environment(config.threads))
        return ProgramSession(program, opening)


def open_emulated(device: str) -> EmulatedDevice:
    """Returns the emulated device called `device`, which must have been prepared.

    Raises:
        UsageError: no such device.
        EnvironmentLacksError: the emulator is not installed, or the device is not prepared, or with other versions.
    """
    processor = get_processor(device)
    program, place = find_emulator(), place_of(processor)
    prepared = read_record(place)
    if prepared is None:
        raise EnvironmentLacksError(
            f"{device}: is not prepared: found no {place / RECORD}. Prepare it once, which downloads about 90 MB: "
            f"{prepare_command(processor)}"
        )
    if prepared.wheels != WHEELS:
        raise EnvironmentLacksError(
            f"{device}: found it prepared with {_list(prepared.wheels)}, expected {_list(WHEELS)}. Prepare it anew: "
            f"{prepare_command(processor)}"
        )
    return EmulatedDevice(processor, place, program, prepared.python)


def find_emulator() -> str:
    """Returns the path of the emulator.

    Raises:
        EnvironmentLacksError: it is not installed.
    """
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise EnvironmentLacksError(
            f"the program '{PROGRAMS[0]}' is not installed. Install it: apt-get install qemu-user-static"
        )
    return found


def read_record(place: Path) -> Prepared | None:
    """Returns what `place` was prepared with; None where it was not, or by another edgekit."""
    try:
        return Prepared.model_validate_json((place / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def prepare_command(processor: Processor) -> str:
    """Returns the command that prepares a device."""
    return f"edgekit prepare-device {processor.device}"


def _version_of(program: str) -> str:
    """Returns what the emulator calls itself, for example `qemu-aarch64 7.2.22 (Debian ...)`."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(said.splitlines()[:1]).replace(" version ", " ")


def _list(wheels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in wheels.items())
