"""Counts the weights of a model artifact from the headers of its safetensors files; no tensor is read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.models.files import weight_files

_FLOATS = ("F", "BF")
_NOT_WEIGHTS = (".weight_scales", ".weight_zero_points", ".position_ids")


def weight_bytes(model: Artifact) -> int:
    """Returns the size of the weight files in bytes."""
    return sum(file.stat().st_size for file in weight_files(model.path))


def count_parameters(model: Artifact) -> int:
    """Returns the number of weights; a code counts as the weight it stands for, scales and zero points do not count."""
    bits_of = _bits_of_modules(model.path)
    total = 0
    for file in weight_files(model.path):
        for name, entry in _header(file).items():
            if name == "__metadata__" or name.endswith(_NOT_WEIGHTS):
                continue
            bits = bits_of.get(name.removesuffix(".weight_codes"), 8) if name.endswith(".weight_codes") else 8
            # Exact where the codes of a row fill whole bytes; a row's last byte may count as more codes than it holds.
            total += math.prod(entry["shape"][:-1]) * (entry["shape"][-1] * 8 // bits if entry["shape"] else 1)
    return total


@dataclass(frozen=True)
class TensorSize:
    """What a safetensors header says of a tensor."""

    shape: tuple[int, ...]
    element_bytes: int
    """Bytes of one element."""
    is_float: bool


def tensor_sizes(directory: Path) -> dict[str, TensorSize]:
    """Returns the size of every tensor in the weight files of a model, by name."""
    return {
        name: TensorSize(
            tuple(entry["shape"]),
            (entry["data_offsets"][1] - entry["data_offsets"][0]) // max(1, math.prod(entry["shape"])),
            str(entry["dtype"]).startswith(_FLOATS),
        )
        for file in weight_files(directory)
        for name, entry in _header(file).items()
        if name != "__metadata__"
    }


def _bits_of_modules(directory: Path) -> dict[str, int]:
    """Returns module name to the bits a code takes."""
    file = directory / "quantization.json"
    if not file.is_file():
        return {}
    modules = json.loads(file.read_text(encoding="utf-8"))["modules"]
    return {name: scheme["bits"] for name, scheme in modules.items()}


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, dict[str, list[int]]] = json.loads(stream.read(length))
    return header
