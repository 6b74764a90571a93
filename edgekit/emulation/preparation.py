"""Puts together what an emulated device needs: a small arm64 system of the distribution's packages, and wheels.

apt and pip download, as they are set up on this machine. apt works on a state of its own, so that it needs no root and
this machine's packages, architectures and lists stay as they are. A preparation that was broken off keeps its
downloads; a finished one is renamed into place, or there is none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from edgekit.artifact import write_atomically
from edgekit.disk import writing
from edgekit.emulation.device import (
    PACKAGES,
    RECORD,
    ROOT,
    WHEELS,
    EmulatedDevice,
    Prepared,
    find_emulator,
    prepare_command,
    read_record,
)
from edgekit.emulation.processors import Processor, get_processor, place_of
from edgekit.errors import EnvironmentLacksError
from edgekit.events import Event, EventSink, ignore

STAGE = "prepare-device"

SYSTEM = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
"""Packages of the distribution; apt adds what these need."""

_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
"""Tags of the wheels above that a Debian of the last years runs."""

# What other configuration does after an update is for this machine's packages.
_APT = """\
#clear APT::Architectures;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::State "{directory}";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}";
Dir::Log "{directory}/log";
"""


def prepare_device(device: str, *, offline: bool = False, events: EventSink = ignore) -> EmulatedDevice:
    """Returns the emulated device called `device`, after preparing it where that is not done.

    Raises:
        UsageError: no such device.
        EnvironmentLacksError: the emulator, apt or pip is missing, a download failed or is forbidden, or the disk is
            full.
    """
    processor = get_processor(device)
    program, place = find_emulator(), place_of(processor)
    with writing(f"{place}", "Free disk space, then run the same command again."), _alone(place):
        prepared = read_record(place)
        if prepared is None or prepared.wheels != WHEELS:
            _require_tools(processor, offline=offline)
            prepared = _prepare(processor, program, events)
    return EmulatedDevice(processor, place, program, prepared.python)


def _require_tools(processor: Processor, *, offline: bool) -> None:
    """Refuses where the preparation cannot work.

    Raises:
        EnvironmentLacksError: offline, or apt or pip is missing.
    """
    if offline:
        raise EnvironmentLacksError(
            f"{processor.device}: is not prepared, and --offline forbids the downloads. Run "
            f"`{prepare_command(processor)}` once without it."
        )
    missing = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        raise EnvironmentLacksError(
            f"{processor.device}: found no program '{missing[0]}', expected Debian or a system made from it, whose "
            "packages for arm64 are the system that the emulator runs. Prepare and check in a container of Debian: "
            "apt-get install qemu-user-static python3-venv"
        )
    if find_spec("pip") is None:
        raise EnvironmentLacksError(
            f"{processor.device}: found no pip for {sys.executable}, expected it to download the wheels for arm64. "
            f"Install it: {sys.executable} -m ensurepip"
        )


def _prepare(processor: Processor, program: str, events: EventSink) -> Prepared:
    """Fills a sibling of the place, tries it, and renames it."""
    place = place_of(processor)
    partial = place.with_name(f".{place.name}.partial")
    root, packages = partial / ROOT, partial / PACKAGES
    steps = _Steps(events, total=5)
    for stale in (root, packages):
        shutil.rmtree(stale, ignore_errors=True)
    steps.begin("apt: list of packages for arm64")
    settings = _settings_of_apt(partial / "apt")
    _run(["apt-get", "-c", str(settings), "--quiet", "update"], "apt's lists for arm64")
    steps.begin("apt: download the system")
    install = ["apt-get", "-c", str(settings), "--quiet", "--yes", "--download-only", "install", *SYSTEM]
    _run(install, f"the packages {' '.join(SYSTEM)} for arm64")
    # an earlier try may have left versions that the lists no longer have
    _run(["apt-get", "-c", str(settings), "--quiet", "autoclean"], "apt's archives")
    steps.begin("unpack the system")
    archives = sorted((partial / "apt" / "archives").glob("*.deb"))
    root.mkdir()
    for archive in archives:
        _run(["dpkg-deb", "--extract", str(archive), str(root)], archive.name)
    for name, text in processor.system_files.items():
        write_atomically(root / name, text)
    python = (root / "usr" / "bin" / "python3").readlink().name
    steps.begin(f"pip: download {', '.join(WHEELS)}")
    _run(_pip(python, packages), f"wheels for arm64 and {python}")
    steps.begin("try the emulator")
    _require_versions(EmulatedDevice(processor, partial, program, python))
    prepared = Prepared(
        device=processor.device, python=python, wheels=WHEELS, system=[archive.stem for archive in archives]
    )
    write_atomically(partial / RECORD, prepared.model_dump_json(indent=2) + "\n")
    shutil.rmtree(partial / "apt")
    _replace(place, partial)
    steps.end()
    return prepared


def _settings_of_apt(directory: Path) -> Path:
    """Returns a configuration file for apt with which everything that it writes goes into `directory`."""
    for name in ("lists/partial", "archives/partial", "log"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()
    file = directory / "apt.conf"
    file.write_text(_APT.format(directory=directory), encoding="utf-8")
    return file


def _pip(python: str, packages: Path) -> list[str]:
    """Returns the command that puts the wheels into `packages`, for the interpreter called `python`."""
    version = python.removeprefix("python")
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"]
    wanted = [f"{name}=={release}" for name, release in WHEELS.items()]
    fixed = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", version, *platforms]
    return [sys.executable, "-m", "pip", "install", *quiet, *fixed, "--target", str(packages), *wanted]


def _require_versions(device: EmulatedDevice) -> None:
    """Lets a worker look for the packages.

    Raises:
        EnvironmentLacksError: it does not start, or finds others.
    """
    found = {module.replace("_", "-"): version for module, version in device.facts["libraries"].items()}
    if found != WHEELS:
        raise EnvironmentLacksError(f"{device.name}: found the packages {found}, expected {WHEELS}. Prepare it anew.")


def _run(command: list[str], what: str) -> None:
    """Runs a program that downloads or unpacks `what`.

    Raises:
        EnvironmentLacksError: it failed; with its reason.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        check=False,
    )
    if done.returncode:
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        reasons = [line for line in said if line.startswith(("E:", "ERROR:"))] or said[-1:] or ["it gave no reason"]
        program = "pip" if "pip" in command else command[0]
        raise EnvironmentLacksError(
            f"{what}: {program} failed: {' '.join(reasons)} Expected sources of packages that hold it and can be "
            "reached; what was downloaded is kept. Run the same command again."
        )


def _replace(place: Path, partial: Path) -> None:
    """Renames `partial` to `place`, which may hold an older preparation."""
    older = place.with_name(f".{place.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    if place.exists():
        place.rename(older)
    partial.rename(place)
    shutil.rmtree(older, ignore_errors=True)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Lets one process at a time prepare a place; the system drops the lock of one that dies."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Steps:
    """Tells of the steps, each when it begins."""

    def __init__(self, events: EventSink, total: int) -> None:
        self._events, self._total, self._completed = events, total, -1

    def begin(self, text: str) -> None:
        self._completed += 1
        self._tell(text)

    def end(self) -> None:
        self._completed = self._total
        self._tell("prepared")

    def _tell(self, text: str) -> None:
        event = Event("progress", stage=STAGE, text=text, completed=self._completed, total=self._total)
        self._events(event)
