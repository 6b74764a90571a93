"""Optimizes a float32 sequence classifier by Microsoft Olive for onnxruntime's CPU provider: float32, int8 and int4.

    VENV/bin/python benchmarks/olive_peer.py MODEL_DIRECTORY OUT_DIRECTORY

Run by the Python of an environment of its own (`olive-requirements.txt`), which has no edgekit in it. MODEL_DIRECTORY
is what transformers loads. Each file gets a directory of OUT_DIRECTORY; `peer.json` there says what they are, how they
were made, and what could not be made.

`olive auto-opt` chooses the passes: conversion, peephole and transformer optimizer, then dynamic quantization for int8
and blocks of 128 for int4. Its successor `olive optimize` has no way to int8 without calibration text from a hub, and
none to int4 for encoders. Files whose name has a suffix are of the same passes with one option that onnxruntime's
documentation recommends for processors with VNNI: a scale for each channel, and int4 multiplied as int8.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("olive-ai", "optimum", "onnxruntime", "onnx", "torch", "transformers")
CONFIG = "config.json"
SHOWN = 500
PLANS: tuple[tuple[str, str, tuple[str, dict[str, Any]] | None], ...] = (
    ("float32", "fp32", None),
    ("int8", "int8", None),
    ("int8-per-channel", "int8", ("dynamic_quant", {"per_channel": True})),
    ("int4", "int4", None),
    ("int4-accuracy-level-4", "int4", ("matmul4", {"block_size": 32, "accuracy_level": 4})),
)
"""Name of the file, Olive's precision, and the pass whose options are changed."""


class OliveError(Exception):
    """Olive ended without a file."""


def olive(scratch: Path, *words: str) -> None:
    """Runs one command of Olive in the directory `scratch`, where it keeps a cache.

    Raises:
        OliveError: it failed; the message is the last line that it said.
    """
    environment = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "olive", *words]
    finished = subprocess.run(command, cwd=scratch, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode != 0:
        said = (finished.stderr.strip() or finished.stdout.strip() or "it said nothing").splitlines()
        raise OliveError(f"olive {words[0]} ended with {finished.returncode}: {said[-1][:SHOWN]}")


def make_file(model: Path, out: Path, precision: str, change: tuple[str, dict[str, Any]] | None) -> None:
    """Writes one file by the passes of `auto-opt`, one of them changed.

    Raises:
        OliveError: Olive failed, or wrote no ONNX file.
    """
    words = ["auto-opt", "-m", str(model), "-t", "text-classification", "-o", str(out), "--precision", precision]
    words += ["--device", "cpu", "--provider", "CPUExecutionProvider"]
    out.mkdir(parents=True, exist_ok=True)
    if change is None:
        olive(out, *words)
    else:
        olive(out, *words, "--dry_run")
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        name, options = change
        config["passes"][name].update(options)
        (out / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        olive(out, "run", "--config", str(out / CONFIG))
    if not list(out.rglob("*.onnx")):
        raise OliveError("olive ended well, but wrote no .onnx file.")


def describe(name: str, precision: str, change: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    """Returns what `peer.json` says of a file."""
    changed = "" if change is None else f", {change[0]} with {change[1]}"
    how = f"olive auto-opt --precision {precision}{changed}"
    return {"name": name, "precision": name.partition("-")[0], "how": how, "refused": None}


def main() -> None:
    """Makes the files and writes `peer.json`."""
    parser = argparse.ArgumentParser(description="Optimize a classifier by Olive.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    files = []
    for name, precision, change in PLANS:
        described = describe(name, precision, change)
        try:
            make_file(arguments.model.resolve(), arguments.out.resolve() / name, precision, change)
        except OliveError as error:
            described["refused"] = str(error)
        files.append(described)
    report = {"versions": {package: version(package) for package in PACKAGES}, "files": files}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "peer.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
