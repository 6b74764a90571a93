"""Puts codes into a LiteRT file in the place of the floats that they stand for, and reads them back.

    linear, 8 bits by channel, rounded activations       FULLY_CONNECTED on codes, which rounds each row of its input
    linear, 8 or 4 bits by channel, float activations    DEQUANTIZE of codes, then FULLY_CONNECTED
    table, 8 bits by row                                 EMBEDDING_LOOKUP on codes

A weight is found by its floats. The converter keeps them, but for a factor of each row that it took in from what
follows (attention's scale): that factor goes into the scales, and the codes stay. What the file format cannot hold
(groups, zero points, 3 and 2 bits) is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgekit.errors import ModelError, UnsupportedError
from edgekit.exporters.litert_needs import require_kernel
from edgekit.models.codes import QuantizedTensor
from edgekit.models.quantized import QuantizedLinear, QuantizedModule

_IDENTIFIER = b"TFL3"
_ROUNDING = 4 * 2.0**-24
"""Relative difference of two float32 numbers that were rounded a few times."""


@dataclass(frozen=True)
class CodedWeight:
    """The weight of a module as the file is to hold it."""

    codes: NDArray[np.int8]
    """(rows, columns), symmetric."""
    scales: NDArray[np.float32]
    """(rows,)."""
    bits: int
    is_linear: bool
    rounds_activations: bool
    """Whether the input is rounded to 8 bits; a table has none."""


def coded_weights(network: nn.Module) -> dict[str, CodedWeight]:
    """Returns module name to the weight of each linear and table on codes.

    Raises:
        UnsupportedError: LiteRT has no kernel for a scheme; names the module.
    """
    modules = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedModule)}
    return {name: _coded(name, module) for name, module in modules.items()}


def store_codes(content: bytes, weights: dict[str, CodedWeight]) -> tuple[bytes, dict[str, CodedWeight]]:
    """Returns the content of a .tflite file with codes in the place of floats, and what was stored of which module.

    The converter looks up by itself what does not depend on the text, such as positions: those rows stay the floats
    that their codes stand for, and the table is not among what is returned.

    Raises:
        UnsupportedError: the converter did not keep a weight, modules that are quantized in different ways share one,
            or a linear whose input is rounded became another operator.
    """
    if not weights:
        return content, {}
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    placed: dict[str, CodedWeight] = {}
    for index, buffer in enumerate(model.buffers):
        found = {} if buffer.data is None else _owners(buffer.data, weights)
        if found:
            _replace(model, index, _common(found))
            placed |= found
    for name in (name for name in weights if name not in placed):
        if weights[name].is_linear or _has_room_for(model, weights[name]):
            raise UnsupportedError(
                f"litert: the converter did not keep the weight of '{name}', so its codes cannot be stored. Exclude "
                "the module from quantization, or export the model as onnx."
            )
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output()), placed


def _common(found: dict[str, CodedWeight]) -> CodedWeight:
    """Returns the weight that modules share.

    Raises:
        UnsupportedError: one of them rounds its input and another does not, or they have other bits.
    """
    (first, weight), *others = found.items()
    for name, other in others:
        if (other.bits, other.rounds_activations, other.is_linear) != (
            weight.bits,
            weight.rounds_activations,
            weight.is_linear,
        ):
            raise UnsupportedError(
                f"litert: '{first}' and '{name}' share their weight and are quantized in different ways, which one "
                "constant of the file cannot be. Quantize both alike, or export the model as onnx."
            )
    return weight


def _has_room_for(model: Any, weight: CodedWeight) -> bool:
    """Returns whether a constant of floats is as large as a table: then the converter changed it."""
    return any(buffer.data is not None and buffer.data.size == weight.codes.size * 4 for buffer in model.buffers)


def _owners(data: NDArray[np.uint8], weights: dict[str, CodedWeight]) -> dict[str, CodedWeight]:
    """Returns the modules whose weight a buffer holds, each with the scales that it has there."""
    sized = {name: weight for name, weight in weights.items() if weight.codes.size * 4 == data.size}
    if not sized:
        return {}
    floats = data.view(np.float32)
    found = {name: _scaled(floats.reshape(weight.codes.shape), weight) for name, weight in sized.items()}
    return {name: weight for name, weight in found.items() if weight is not None}


def _scaled(floats: NDArray[np.float32], weight: CodedWeight) -> CodedWeight | None:
    """Returns `weight` with the scales that `floats` have it with, or None where they are not its codes."""
    rows = np.arange(len(weight.codes))
    largest = np.abs(weight.codes.astype(np.int16)).argmax(axis=1)  # -128 has no opposite in 8 bits
    peaks = weight.codes[rows, largest].astype(np.float32)
    if not _is_alike(floats[:1], weight.codes[:1], floats[:1, largest[0]], peaks[:1]):
        return None
    if not _is_alike(floats, weight.codes, floats[rows, largest], peaks):
        return None
    same = np.array_equal(floats, weight.codes.astype(np.float32) * weight.scales[:, None])
    scales = (
        weight.scales
        if same
        else np.where(peaks == 0, weight.scales, floats[rows, largest] / np.where(peaks == 0, 1, peaks))
    )
    return replace(weight, scales=scales.astype(np.float32))


def _is_alike(
    floats: NDArray[np.float32], codes: NDArray[np.int8], values: NDArray[np.float32], peaks: NDArray[np.float32]
) -> bool:
    """Returns whether each row of `floats` is its codes times one number, to float32's rounding."""
    if not np.array_equal(values != 0, peaks != 0):  # zeros are no multiple of a code
        return False
    expected = codes.astype(np.float64) * (values.astype(np.float64) / np.where(peaks == 0, 1, peaks))[:, None]
    return np.allclose(floats, expected, rtol=_ROUNDING, atol=0)


def require_codes(file: Path, weights: dict[str, CodedWeight]) -> None:
    """Does nothing where the file holds the codes and scales of every weight.

    Raises:
        ModelError: it does not.
    """
    if not weights:
        return
    found = {(_digest(codes), _digest(scales)) for codes, scales in read_codes(file)}
    for name, weight in weights.items():
        if (_digest(weight.codes), _digest(weight.scales)) not in found:
            raise ModelError(f"litert: {file.name} does not hold the codes of '{name}'. Nothing was exported.")


def read_codes(file: Path) -> Iterator[tuple[NDArray[np.int8], NDArray[np.float32]]]:
    """Yields codes (rows, columns) and scales (rows,) of every constant matrix of 8 or 4 bits in a .tflite file."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data, kind = model.buffers[tensor.buffer].data, tensor.type
            if data is None or kind not in (schema.TensorType.INT8, schema.TensorType.INT4):
                continue
            shape = tuple(int(size) for size in tensor.shape)
            codes = np.asarray(data, dtype=np.uint8)
            flat = codes.view(np.int8) if kind == schema.TensorType.INT8 else _unpack(codes, int(np.prod(shape)))
            yield flat.reshape(shape), np.asarray(tensor.quantization.scale, dtype=np.float32)


def _coded(name: str, module: QuantizedModule) -> CodedWeight:
    weight: QuantizedTensor = module.quantized_weight()
    scheme, is_linear = weight.scheme, isinstance(module, QuantizedLinear)
    try:
        require_kernel(scheme, is_table=not is_linear)
    except UnsupportedError as error:
        raise UnsupportedError(f"module '{name}': {error}") from error
    return CodedWeight(
        codes=weight.codes.contiguous().numpy().astype(np.int8),
        scales=weight.scales.float().reshape(-1).contiguous().numpy(),
        bits=scheme.bits,
        is_linear=is_linear,
        rounds_activations=scheme.activations == "dynamic-int8",
    )


def _replace(model: Any, index: int, weight: CodedWeight) -> None:
    """Makes buffer `index` hold codes, and every tensor on it say so.

    Raises:
        UnsupportedError: an operator that reads them multiplies floats, and the scheme rounds.
    """
    for graph in model.subgraphs:
        for number, tensor in enumerate(list(graph.tensors)):  # tensors are added meanwhile
            if tensor.buffer != index:
                continue
            readers = [operator for operator in graph.operators if number in list(operator.inputs)]
            if all(_reads_codes(model, operator, number, weight) for operator in readers):
                _describe_codes(tensor, weight)
                for operator in readers:
                    if hasattr(operator.builtinOptions, "asymmetricQuantizeInputs"):
                        operator.builtinOptions.asymmetricQuantizeInputs = True
            elif weight.is_linear and weight.rounds_activations:
                name = tensor.name.decode("utf-8", errors="replace")
                raise UnsupportedError(
                    f"litert: '{name}' is read by another operator than FULLY_CONNECTED, which rounds no activations. "
                    "Quantize it with activations = 'float', or export the model as onnx."
                )
            else:
                _decode_first(model, graph, number, weight)
    stored = weight.codes.view(np.uint8) if weight.bits == 8 else _pack(weight.codes)
    model.buffers[index].data = stored.reshape(-1)


def _reads_codes(model: Any, operator: Any, number: int, weight: CodedWeight) -> bool:
    """Returns whether an operator that reads tensor `number` has a kernel for codes that rounds as the scheme says."""
    from ai_edge_litert import schema_py_generated as schema

    linear, table = schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.EMBEDDING_LOOKUP
    kind = model.operatorCodes[operator.opcodeIndex].builtinCode
    fits = (kind == linear and weight.rounds_activations) or kind == table
    return fits and list(operator.inputs).index(number) == 1


def _describe_codes(tensor: Any, weight: CodedWeight) -> None:
    from ai_edge_litert import schema_py_generated as schema

    tensor.type = schema.TensorType.INT8 if weight.bits == 8 else schema.TensorType.INT4
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = weight.scales
    tensor.quantization.zeroPoint = np.zeros(len(weight.scales), dtype=np.int64)
    tensor.quantization.quantizedDimension = len(tensor.shape) - 2  # rows; a batch of one may stand before them


def _decode_first(model: Any, graph: Any, number: int, weight: CodedWeight) -> None:
    """Puts a DEQUANTIZE before the graph that gives tensor `number` its floats; XNNPACK decodes it once, at load."""
    from ai_edge_litert import schema_py_generated as schema

    floats = graph.tensors[number]
    codes = schema.TensorT()
    codes.shape, codes.name, codes.buffer = floats.shape, b"%s/codes" % floats.name, floats.buffer
    _describe_codes(codes, weight)
    graph.tensors.append(codes)
    floats.buffer = 0  # by convention empty: what an operator computes
    operator = schema.OperatorT()
    operator.opcodeIndex = _operator_code(model, schema.BuiltinOperator.DEQUANTIZE)
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [number]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    graph.operators.insert(0, operator)


def _operator_code(model: Any, kind: int) -> int:
    """Returns the place of an operator in the model's table, entered now where it is not there."""
    from ai_edge_litert import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == kind:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = kind, 5
    code.deprecatedBuiltinCode = min(kind, 127)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Returns 4-bit codes two a byte, the first in the low half."""
    halves = codes.reshape(-1).view(np.uint8) & 15
    flat = np.append(halves, np.zeros(len(halves) % 2, dtype=np.uint8))
    packed: NDArray[np.uint8] = flat[0::2] | (flat[1::2] << 4)
    return packed


def _unpack(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    halves: NDArray[np.int8] = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    signed: NDArray[np.int8] = (halves ^ 8) - 8
    return signed


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
