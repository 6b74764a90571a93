"""Reads a GGUF's header and checks that the file is whole, before any weight is touched.

Layout (version 2 and 3, little-endian): magic, version, number of tensors, number of metadata, the metadata, name,
shape, type and offset of every tensor, padding, the tensors' bytes. What the weights mean is not known here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import EnvironmentLacksError, ModelError
from edgekit.extras import install_command

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_SHARDS_KEY = "split.count"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS = 4
_AGAIN = "It is truncated or altered: download or export it again."


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the file."""

    name: str
    type: str
    """`F32`, `F16`, `Q4_0` ...: gguf's name of it."""
    shape: tuple[int, ...]
    """In torch's order: rows first."""
    offset: int
    """Byte in the file."""
    bytes: int
    """Length in the file."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF says of itself."""

    version: int
    metadata: dict[str, Any]
    """Key to int, float, bool, str, or list of one of them."""
    tensors: dict[str, TensorEntry]
    """By name, in the file's order."""


class _Cursor:
    """Reads the header's values one after another; running off the end means a truncated file."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise EOFError
        part = self.data[self.position : end]
        self.position = end
        return part

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        return bytes(self.take(self.scalar("Q"))).decode("utf-8")

    def value(self) -> Any:
        return self._value_of(self.scalar("I"))

    def _value_of(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            part = self.take(count * struct.calcsize(code))
            return list(struct.unpack(f"<{count}{code}", part))
        if inner != _STRING:
            raise ValueError(f"a list of values of the kind {inner}")
        return [self.text() for _ in range(count)]


def read_header(file: Path) -> GgufHeader:
    """Returns the header of a GGUF after checking that the file holds all that it announces.

    Raises:
        ModelError: not a GGUF, of another byte order or version, truncated, one of several shards, or of a
            quantization that cannot be decoded.
        EnvironmentLacksError: the package `gguf` is not installed.
    """
    import mmap

    size = file.stat().st_size
    with file.open("rb") as stream:
        version = _check_start(file, stream.read(8), size)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            cursor = _Cursor(data)
            try:
                header, start = _read(file, cursor, version)
            except EOFError:
                raise ModelError(f"{file}: found {size} bytes, fewer than its header needs. {_AGAIN}") from None
            except (KeyError, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as error:
                raise ModelError(f"{file}: its header is not valid ({error}). {_AGAIN}") from error
            finally:
                cursor.data.release()
                del cursor
    _check_extent(file, header, start, size)
    return header


def _check_start(file: Path, start: bytes, size: int) -> int:
    """Returns the version, after checking magic and byte order."""
    if start[:4] == b"vers":
        raise ModelError(f"{file}: is a Git LFS pointer, not the model. Fetch it: git lfs pull")
    if start[:4] != MAGIC:
        found = repr(start[:4]) if start else "nothing"
        raise ModelError(
            f"{file}: found {found} at its start, expected {MAGIC!r}: it is not a GGUF file. Check the path, or "
            "download it again."
        )
    if len(start) < 8:
        raise ModelError(f"{file}: found {size} bytes, fewer than its header needs. {_AGAIN}")
    version: int = struct.unpack("<I", start[4:])[0]
    swapped: int = struct.unpack(">I", start[4:])[0]
    if version not in VERSIONS and swapped in VERSIONS:
        raise ModelError(
            f"{file}: is a big-endian GGUF, expected a little-endian one. Convert it: "
            "gguf-convert-endian FILE little (of the package gguf)"
        )
    if version not in VERSIONS:
        raise ModelError(f"{file}: found GGUF version {version}, expected 2 or 3. Convert it with a newer llama.cpp.")
    return version


def _read(file: Path, cursor: _Cursor, version: int) -> tuple[GgufHeader, int]:
    """Returns the header and where the tensors' bytes start."""
    cursor.take(8)
    tensors, keys = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"the key '{key}' stands there twice")
        metadata[key] = cursor.value()
    if metadata.get(_SHARDS_KEY, 1) not in (0, 1):
        raise ModelError(
            f"{file}: is one of {metadata[_SHARDS_KEY]} parts of a model, expected it whole. Join them: "
            "llama-gguf-split --merge FIRST_PART OUT"
        )
    blocks: dict[int, tuple[str, int, int] | None] = {}
    entries: dict[str, TensorEntry] = {}
    for _ in range(tensors):
        entry = _entry(file, cursor, blocks)
        if entry.name in entries:
            raise ValueError(f"the tensor '{entry.name}' stands there twice")
        entries[entry.name] = entry
    alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"the alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    for entry in entries.values():
        if entry.offset % alignment:
            raise ValueError(f"the tensor '{entry.name}' starts at {entry.offset}, not at a multiple of {alignment}")
    placed = {
        name: TensorEntry(name, entry.type, entry.shape, start + entry.offset, entry.bytes)
        for name, entry in entries.items()
    }
    return GgufHeader(version, metadata, placed), start


def _entry(file: Path, cursor: _Cursor, blocks: dict[int, tuple[str, int, int] | None]) -> TensorEntry:
    name = cursor.text()
    dimensions = cursor.scalar("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"the tensor '{name}' has {dimensions} dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))
    kind = cursor.scalar("I")
    offset = cursor.scalar("Q")
    if kind not in blocks:
        blocks[kind] = _block_of(file, kind)
    found = blocks[kind]
    if found is None:
        raise ModelError(
            f"{file}: the tensor '{name}' has the quantization number {kind}, which the installed gguf package cannot "
            "decode; expected F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K or the like. Take another quantization of "
            "the model, or a newer gguf package."
        )
    type_name, block, block_bytes = found
    if not shape or shape[-1] % block:
        raise ValueError(f"the tensor '{name}' of the type {type_name} has the shape {shape}")
    return TensorEntry(name, type_name, shape, offset, math.prod(shape) // block * block_bytes)


def _block_of(file: Path, kind: int) -> tuple[str, int, int] | None:
    """Returns name, weights and bytes of a quantization's block, or None when `gguf` cannot decode it."""
    try:
        import numpy as np
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise EnvironmentLacksError(
            f"{file}: reading GGUF needs the package gguf. Install it: {install_command('gguf')}"
        ) from error
    try:
        known = GGMLQuantizationType(kind)
        weights, size = GGML_QUANT_SIZES[known]
        if known not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            dequantize(np.zeros((1, size), dtype=np.uint8), known)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return known.name, weights, size


def _check_extent(file: Path, header: GgufHeader, start: int, size: int) -> None:
    """Checks that every tensor lies inside the file, and that no two overlap."""
    end = start
    for entry in sorted(header.tensors.values(), key=lambda entry: entry.offset):
        if entry.offset < end:
            raise ModelError(f"{file}: the tensor '{entry.name}' overlaps the one before it. {_AGAIN}")
        end = entry.offset + entry.bytes
        if end > size:
            raise ModelError(f"{file}: found {size} bytes; the tensor '{entry.name}' ends at byte {end}. {_AGAIN}")
