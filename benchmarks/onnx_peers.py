"""ONNX files that other tools make of a float32 student, each tool in an environment of its own.

optimum-onnx (`optimum_peer.py`) and Microsoft Olive (`olive_peer.py`) get the student's directory as transformers
reads it, and write what their users would ship. Their files are then opened and measured by onnxruntime in this
environment, like edgekit's: what differs is the file alone. What was made before of the same student is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import ROOT, say

from edgekit.artifact import Artifact, Lineage, hash_file, hash_json, publish
from edgekit.benchmarking.machine import machine_fingerprint

HERE = Path(__file__).resolve().parent
BESIDE = ("config.json", "tokenizer.json", "task.json")
SHOWN = 2000


@dataclass(frozen=True)
class Tool:
    """One row of the table of peers."""

    name: str
    program: str
    """The script that makes the files, run by the Python of the tool's environment."""
    requirements: Path
    environment: str
    """Directory of the environment, below the work directory."""


@dataclass(frozen=True)
class PeerFile:
    """One file of a peer."""

    made_by: str
    """The tool and the name that its script gave the file."""
    precision: str
    how: str
    """The call that made it."""
    artifact: Artifact


@dataclass
class PeerFiles:
    """What all peers made."""

    files: list[PeerFile] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """What could not be made, and why."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tool to the versions of its packages."""


TOOLS = (
    Tool("optimum-onnx", "optimum_peer.py", ROOT / "tests" / "peers" / "optimum-requirements.txt", "optimum-venv"),
    Tool("Olive", "olive_peer.py", HERE / "olive-requirements.txt", "olive-venv"),
)


def make_peer_files(
    student: Artifact, work: Path, pythons: dict[str, Path], tools: Sequence[Tool] = TOOLS
) -> PeerFiles:
    """Returns what every tool made of the float student, which transformers reads as it lies there.

    `pythons` names environments that are there; the others are made in the work directory. A tool that cannot be
    installed or run is left out with its reason.
    """
    made = PeerFiles()
    for tool in tools:
        try:
            python = pythons.get(tool.name) or make_environment(tool, work)
            out = run_tool(tool, python, student, work)
        except subprocess.CalledProcessError as error:
            made.refused[tool.name] = _last_line(error)
            continue
        report = json.loads((out / "peer.json").read_text(encoding="utf-8"))
        made.versions[tool.name] = report["versions"]
        for described in report["files"]:
            made_by = f"{tool.name}, {described['name']}"
            if described["refused"] is not None:
                made.refused[made_by] = described["refused"]
                continue
            artifact = wrap(out / described["name"], student)
            made.files.append(PeerFile(made_by, described["precision"], described["how"], artifact))
    return made


def make_environment(tool: Tool, work: Path) -> Path:
    """Returns the Python of the tool's environment, made in the work directory when it is not there.

    Raises:
        CalledProcessError: pip could not install it.
    """
    environment = work / tool.environment
    python, ready = environment / "bin" / "python", environment / ".installed"
    wanted = hash_file(tool.requirements)
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        say(f"installing {tool.name} into {environment} (a few minutes, 2 GB)")
        _run([sys.executable, "-m", "venv", "--clear", environment])
        _run([python, "-m", "pip", "install", "--quiet", "-r", tool.requirements])
        ready.write_text(wanted, encoding="utf-8")
    return python


def run_tool(tool: Tool, python: Path, student: Artifact, work: Path) -> Path:
    """Returns the directory with the tool's files and `peer.json`.

    Raises:
        CalledProcessError: the tool ended with an error.
    """
    program = HERE / tool.program
    made_from = hash_json([student.digest, hash_file(program), hash_file(tool.requirements), instructions()])
    out = work / "peers" / f"{program.stem}-{made_from[:12]}"
    if not (out / "peer.json").is_file():
        say(f"making the files of {tool.name}")
        shutil.rmtree(out, ignore_errors=True)
        extra = ["--instructions", instructions()] if tool.name == "optimum-onnx" else []
        _run([python, program, student.path.resolve(), out.resolve(), *extra])
    return out


def instructions() -> str:
    """Returns the name that optimum-onnx has for what this machine's processor can do with int8."""
    machine = machine_fingerprint()
    if machine.architecture in ("aarch64", "arm64"):
        return "arm64"
    features = set(machine.cpu_features)
    if "avx512_vnni" in features:
        return "avx512_vnni"
    return "avx512" if "avx512f" in features else "avx2"


def wrap(made: Path, student: Artifact) -> Artifact:
    """Returns a tool's directory as an `onnx` artifact with the student's configuration and tokenizer beside it."""
    out = made.with_name(f"{made.name}-artifact")
    if not out.exists():
        with publish(out, kind="onnx", lineage=Lineage(stage="source")) as directory:
            (directory / "onnx").mkdir()
            for file in sorted(file for file in made.iterdir() if ".onnx" in file.name):
                # Under its own name: a file of weights beside the graph is named in it.
                shutil.copyfile(file, directory / "onnx" / file.name)
            for name in BESIDE:
                shutil.copyfile(student.path / name, directory / name)
    return Artifact.open(out, kind="onnx")


def _run(command: Sequence[str | Path]) -> None:
    """Runs a program with one thread and without a network; what it says is kept for an error."""
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


def _last_line(error: subprocess.CalledProcessError) -> str:
    said = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
    return f"{Path(error.cmd[0]).name} ended with {error.returncode}: {said[-1] if said else 'it said nothing'}"[:SHOWN]
