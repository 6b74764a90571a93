"""Exports a float32 sequence classifier by optimum-onnx: as it is, optimized, and as int8.

    VENV/bin/python benchmarks/optimum_peer.py MODEL_DIRECTORY OUT_DIRECTORY --instructions avx512_vnni

Run by the Python of an environment of its own (`tests/peers/optimum-requirements.txt`), which has no edgekit in it.
MODEL_DIRECTORY is what transformers loads. Each file gets a directory of OUT_DIRECTORY; `peer.json` there says what
they are, how they were made, and what could not be made.

O2 and O3 are the levels of its documentation without float16; O3 is O2 with an approximated GELU. int8 is what
`AutoQuantizationConfig` gives for the processor, dynamic, with a scale for each channel, once of the export and once
of the O2 file, since the documentation shows both tools and does not say which order is faster.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("optimum-onnx", "optimum", "onnxruntime", "onnx", "torch", "transformers")
INSTRUCTIONS = ("avx2", "avx512", "avx512_vnni", "arm64")


def export(model: Path, out: Path) -> None:
    """Writes the plain export."""
    from optimum.onnxruntime import ORTModelForSequenceClassification

    exported = ORTModelForSequenceClassification.from_pretrained(model, export=True, local_files_only=True)
    exported.save_pretrained(out)


def optimize(exported: Path, out: Path, level: str) -> None:
    """Writes an export anew, fused as one of the levels of the documentation says."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForSequenceClassification, ORTOptimizer

    optimizer = ORTOptimizer.from_pretrained(ORTModelForSequenceClassification.from_pretrained(exported))
    optimizer.optimize(AutoOptimizationConfig.with_optimization_level(level), save_dir=out)


def quantize(exported: Path, out: Path, instructions: str) -> None:
    """Writes an export anew with int8 weights, a scale for each channel; activations are rounded as it runs."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    quantizer = ORTQuantizer.from_pretrained(exported, file_name=next(exported.glob("*.onnx")).name)
    config = getattr(AutoQuantizationConfig, instructions)(is_static=False, per_channel=True)
    quantizer.quantize(config, save_dir=out)


def make_files(model: Path, out: Path, instructions: str) -> list[dict[str, Any]]:
    """Makes every file and returns one description each; what fails is described by its error."""
    plain, fused = out / "float32", out / "float32-O2"
    per_channel = f"AutoQuantizationConfig.{instructions}(is_static=False, per_channel=True)"
    plans: list[tuple[str, str, str, Callable[[Path], None]]] = [
        ("float32", "float32", "ORTModel export=True", lambda at: export(model, at)),
        ("float32-O2", "float32", "ORTOptimizer O2", lambda at: optimize(plain, at, "O2")),
        ("float32-O3", "float32", "ORTOptimizer O3", lambda at: optimize(plain, at, "O3")),
        ("int8", "int8", per_channel, lambda at: quantize(plain, at, instructions)),
        ("int8-O2", "int8", f"O2, then {per_channel}", lambda at: quantize(fused, at, instructions)),
    ]
    found = []
    for name, precision, how, make in plans:
        described: dict[str, Any] = {"name": name, "precision": precision, "how": how, "refused": None}
        try:
            make(out / name)
        except Exception as error:  # noqa: BLE001 (the tool's own, torch's and onnxruntime's have no common base)
            described["refused"] = f"{type(error).__name__}: {error}"[:500]
        found.append(described)
    return found


def main() -> None:
    """Makes the files and writes `peer.json`."""
    parser = argparse.ArgumentParser(description="Export a classifier by optimum-onnx.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--instructions", choices=INSTRUCTIONS, required=True)
    arguments = parser.parse_args()
    files = make_files(arguments.model, arguments.out, arguments.instructions)
    report = {"versions": {package: version(package) for package in PACKAGES}, "files": files}
    (arguments.out / "peer.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
