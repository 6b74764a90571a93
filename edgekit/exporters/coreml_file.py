"""Reads a written Core ML package (.mlpackage): its operators, its constants and its codes, bit for bit.

The weights are read by their layout in the file, not by coremltools, which wrote them. It knows nothing of what an
operator computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ModelError

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
_SENTINEL = 0xDEADBEEF
_METADATA = np.dtype([("sentinel", "<u4"), ("kind", "<u4"), ("size", "<u8"), ("offset", "<u8")])
_DTYPES = {
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
}
_LISTS = ("floats", "ints", "bools", "longInts", "doubles")


@dataclass(frozen=True)
class StoredCodes:
    """A weight as the package holds it."""

    codes: np.ndarray
    """`(rows, columns)`, int8 or uint8, one a byte whatever the bits."""
    scales: np.ndarray
    """`(rows, groups)`."""
    zero_points: np.ndarray | None
    """`(rows, groups)`; None: zero."""

    def decoded(self) -> np.ndarray:
        """Returns the floats `(code - zero_point) * scale`, in the type of the scales."""
        size = self.codes.shape[1] // self.scales.shape[1]
        scales = np.repeat(self.scales, size, axis=1)
        codes = self.codes.astype(self.scales.dtype)
        if self.zero_points is not None:
            codes = codes - np.repeat(self.zero_points.astype(self.scales.dtype), size, axis=1)
        floats: np.ndarray = codes * scales
        return floats


@dataclass(frozen=True)
class Operation:
    """One operator of the program, besides constants and codes."""

    kind: str
    inputs: Mapping[str, Sequence[str]]
    """Key to the names of what it reads there."""
    outputs: Sequence[str]


@dataclass(frozen=True)
class WrittenProgram:
    """What a package holds."""

    operations: list[Operation] = field(default_factory=list)
    constants: dict[str, np.ndarray | str] = field(default_factory=dict)
    codes: dict[str, StoredCodes] = field(default_factory=dict)
    """Name of the floats to the codes that stand for them."""
    outputs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


def read_package(package: Path) -> WrittenProgram:
    """Returns the program of a package.

    Raises:
        ModelError: it is missing, damaged, or holds something else than one program of one function.
    """
    from coremltools.proto import Model_pb2

    model: Any = Model_pb2.Model()
    try:
        model.ParseFromString((package / MODEL).read_bytes())
        weights = (package / WEIGHTS).read_bytes() if (package / WEIGHTS).is_file() else b""
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{package}: cannot be read as a Core ML package ({error}). Export the model again."
        ) from error
    functions = model.mlProgram.functions
    if list(functions) != ["main"] or len(functions["main"].block_specializations) != 1:
        raise ModelError(f"{package}: found the functions {sorted(functions)}, expected 'main' alone. Export again.")
    (block,) = functions["main"].block_specializations.values()
    written = WrittenProgram(outputs=list(block.outputs), inputs=[entry.name for entry in functions["main"].inputs])
    reader = _Reader(package, weights, written)
    for operation in block.operations:
        reader.read(operation)
    return written


@dataclass(frozen=True)
class _Reader:
    package: Path
    weights: bytes
    written: WrittenProgram

    def read(self, operation: Any) -> None:
        """Adds an operator to what was read."""
        outputs = [output.name for output in operation.outputs]
        if operation.type == "const":
            self.written.constants[outputs[0]] = self._value(operation.attributes["val"])
        elif operation.type.startswith("constexpr_"):
            self.written.codes[outputs[0]] = self._codes(operation)
        else:
            inputs = {
                key: [self._argument(entry) for entry in value.arguments] for key, value in operation.inputs.items()
            }
            self.written.operations.append(Operation(operation.type, inputs, outputs))

    def _argument(self, argument: Any) -> str:
        """Returns the name of an argument; a value that is written in place gets one."""
        if argument.WhichOneof("binding") == "name":
            return str(argument.name)
        name = f"value {len(self.written.constants)}"
        self.written.constants[name] = self._value(argument.value)
        return name

    def _codes(self, operation: Any) -> StoredCodes:
        parts: dict[str, Any] = {key: self._value(value) for key, value in operation.attributes.items()}
        for key, value in operation.inputs.items():
            parts[key] = self.written.constants[self._argument(value.arguments[0])]
        if operation.type == "constexpr_blockwise_shift_scale":
            return StoredCodes(parts["data"], parts["scale"], parts.get("offset"))
        if operation.type == "constexpr_affine_dequantize" and int(parts["axis"]) == 0:
            rows = parts["quantized_data"].shape[0]
            columns = {key: np.broadcast_to(parts[key].reshape(-1, 1), (rows, 1)) for key in ("scale", "zero_point")}
            return StoredCodes(parts["quantized_data"], columns["scale"], columns["zero_point"])
        raise ModelError(f"{self.package}: found {operation.type}, expected codes as edgekit writes them.")

    def _value(self, value: Any) -> np.ndarray | str:
        from coremltools.proto import MIL_pb2

        kind = MIL_pb2.DataType.Name(value.type.tensorType.dataType)
        shape = [int(dimension.constant.size) for dimension in value.type.tensorType.dimensions]
        if value.WhichOneof("value") == "blobFileValue":
            return _typed(self._blob(int(value.blobFileValue.offset)), kind, shape)
        tensor = value.immediateValue.tensor
        held = tensor.WhichOneof("value")
        if held == "strings":
            return str(tensor.strings.values[0])
        if held == "bytes":
            return _typed(tensor.bytes.values, kind, shape)
        if held not in _LISTS:
            raise ModelError(f"{self.package}: found a constant of {held}, expected numbers. Export the model again.")
        return np.array(list(getattr(tensor, held).values), dtype=_DTYPES[kind]).reshape(shape)

    def _blob(self, offset: int) -> bytes:
        """Returns the bytes that the entry at `offset` of the weights describes."""
        entry = np.frombuffer(self.weights, _METADATA, 1, offset)[0] if offset + 24 <= len(self.weights) else None
        if entry is None or int(entry["sentinel"]) != _SENTINEL:
            raise ModelError(f"{self.package}: found no weights at byte {offset} of {WEIGHTS}. Export the model again.")
        start, size = int(entry["offset"]), int(entry["size"])
        return self.weights[start : start + size]


def _typed(content: bytes, kind: str, shape: Sequence[int]) -> np.ndarray:
    """Returns bytes as an array; codes of 4 bits lie two a byte, the first in the low half."""
    count = int(np.prod(shape))
    if kind not in ("INT4", "UINT4"):
        return np.frombuffer(content, _DTYPES[kind], count).reshape(shape)
    packed = np.frombuffer(content, np.uint8)
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count].reshape(shape)
    return ((halves ^ 8).astype(np.int8) - 8).astype(np.int8) if kind == "INT4" else halves
