"""Counts the weights of a model artifact from the headers of its safetensors files; no tensor is read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.models.files import weight_files

_NOT_WEIGHTS = (".weight_scales", ".weight_zero_points", ".position_ids")


def weight_bytes(model: Artifact) -> int:
    """Returns the size of the weight files in bytes."""
    return sum(file.stat().st_size for file in weight_files(model.path))


def count_parameters(model: Artifact) -> int:
    """Returns the number of weights; a code counts as the weight it stands for, scales and zero points do not count."""
    packed = _packed_modules(model.path)
    total = 0
    for file in weight_files(model.path):
        for name, entry in _header(file).items():
            if name == "__metadata__" or name.endswith(_NOT_WEIGHTS):
                continue
            codes_per_element = 2 if name.removesuffix(".weight_codes") in packed else 1
            total += codes_per_element * math.prod(entry["shape"])
    return total


def _packed_modules(directory: Path) -> set[str]:
    """Returns the names of the modules whose codes are kept two a byte."""
    file = directory / "quantization.json"
    if not file.is_file():
        return set()
    modules = json.loads(file.read_text(encoding="utf-8"))["modules"]
    return {name for name, scheme in modules.items() if scheme["bits"] == 4}


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, dict[str, list[int]]] = json.loads(stream.read(length))
    return header
