"""Writes edgekit's ONNX graph as a Core ML program (MIL), operator by operator from the table of `coreml_operators.py`.

coremltools' own converters are not used: the graph is the one that every other format is made of, and codes stay what
they are.

    8 bits, one scale a row          constexpr_affine_dequantize (iOS 16)
    other codes                      constexpr_blockwise_shift_scale on int8, uint8, int4, uint4 (iOS 18)
    product with a constant          linear, the weight (out, in)
    everything else                  as the table says

Codes of 3 and 2 bits lie in the room of 4. It knows nothing of artifacts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.exporters.coreml_file import StoredCodes
from edgekit.exporters.coreml_operators import OPERATORS, Call, Variable, stored
from edgekit.exporters.graph import constant_of

_LARGEST_RANK = 5
_LINEAR_RANK = 3
_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)


@dataclass
class ProgramWriter:
    """Writes one graph; constants of one name are written once."""

    builder: Any
    """coremltools' `Builder`."""
    blockwise: bool
    """True: codes as iOS 18 reads them; False: as iOS 16 does, 8 bits with one scale a row."""
    variables: dict[ir.Value, Variable] = field(default_factory=dict)
    decoded: dict[str, Variable] = field(default_factory=dict)
    """Name of codes to the variable that stands for their floats; of floats, transposed, to theirs."""

    def write(self, graph: ir.Graph, inputs: dict[str, Variable]) -> Variable:
        """Writes every node; returns the logits.

        Raises:
            UnsupportedError: an operator is not in the table, or is used as Core ML does not have it.
        """
        for value in graph.inputs:
            self.variables[value] = inputs[str(value.name)]
        for node in graph:
            if node.domain or (node.op_type not in OPERATORS and node.op_type != "DequantizeLinear"):
                found = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                raise UnsupportedError(
                    f"coreml: found the operator {found}, which edgekit does not write for Core ML. Export as onnx."
                )
            self._write_node(node)
        return self.variables[graph.outputs[0]]

    def _write_node(self, node: ir.Node) -> None:
        if node.op_type == "Transpose" and is_decoded(node.inputs[0]):
            return  # products read the codes as they lie
        if node.op_type == "DequantizeLinear":
            made = self._decode(node)
        elif node.op_type == "MatMul" and (weight := self._weight(node.inputs[1])) is not None:
            inputs = [self._variable(value) for value in node.inputs[:1] if value is not None]
            made = self._product(Call(self.builder, node, inputs, name_of(node.outputs[0])), weight)
        else:
            made = self._call(self._operands(node))
        for value, variable in zip(node.outputs, made if isinstance(made, (list, tuple)) else [made], strict=True):
            if variable.rank > _LARGEST_RANK:
                raise UnsupportedError(
                    f"coreml: found {node.op_type} with {variable.rank} dimensions, expected at most {_LARGEST_RANK}. "
                    "Export as onnx."
                )
            self.variables[value] = variable

    def _call(self, call: Call) -> Any:
        try:
            return OPERATORS[call.node.op_type](call)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise UnsupportedError(
                f"coreml: coremltools does not write {call.node.op_type} as it is used here ({error}). Export as onnx."
            ) from error

    def _variable(self, value: ir.Value) -> Variable:
        """Returns what stands for a value, written when it is first read where it is a constant."""
        if value not in self.variables:
            producer, array = value.producer(), constant_of(value)
            if producer is not None and producer.op_type == "Transpose":  # of codes, and no product reads it
                self.variables[value] = OPERATORS["Transpose"](self._operands(producer))
            elif array is None:
                raise UnsupportedError(f"coreml: found '{value.name}', which nothing computes. Export as onnx.")
            else:
                self.variables[value] = self.builder.const(val=stored(array), name=name_of(value))
        return self.variables[value]

    def _operands(self, node: ir.Node) -> Call:
        operands = [None if value is None else self._variable(value) for value in node.inputs]
        return Call(self.builder, node, operands, name_of(node.outputs[0]))

    def _weight(self, factor: ir.Value | None) -> Variable | None:
        """Returns the constant second factor of a product as `(out, in)`; None where it is computed."""
        if factor is None:
            return None
        producer, array = factor.producer(), constant_of(factor)
        if producer is not None:
            source = producer.inputs[0]
            is_codes = producer.op_type == "Transpose" and source is not None and is_decoded(source)
            return self.variables[source] if is_codes and source is not None else None
        if array is None or array.ndim != 2:
            return None
        name = f"{name_of(factor)}_out_in"
        if name not in self.decoded:
            self.decoded[name] = self.builder.const(val=np.ascontiguousarray(stored(array).T), name=name)
        return self.decoded[name]

    def _product(self, call: Call, weight: Variable) -> Variable:
        """Multiplies with a constant: `linear` where the inputs have as few dimensions as it takes."""
        inputs = call.inputs[0]
        if inputs.rank <= _LINEAR_RANK:
            return self.builder.linear(x=inputs, weight=weight, name=call.name)
        return self.builder.matmul(x=inputs, y=weight, transpose_y=True, name=call.name)

    def _decode(self, node: ir.Node) -> Variable:
        """Writes codes `(rows, columns)` with their scales and zero points as what Core ML decodes itself."""
        codes, scales, zeros = (*node.inputs, None)[:3]
        if codes is None or scales is None:
            raise UnsupportedError("coreml: found codes without scales, expected both. Export as onnx.")
        name = str(codes.name)
        if name not in self.decoded:
            weight = StoredCodes(
                integers_of(codes),
                _required(scales).astype(np.float32),
                None if zeros is None else integers_of(zeros),
            )
            if weight.codes.shape[1] % weight.scales.shape[1]:
                raise UnsupportedError(
                    f"coreml: '{name}': found rows of {weight.codes.shape[1]} in {weight.scales.shape[1]} groups, "
                    "expected groups of one size. Choose a group size that divides the rows."
                )
            write = self._decode_blocks if self.blockwise else self._decode_rows
            self.decoded[name] = write(codes_name(name), weight, is_narrow=codes.dtype in _FOUR_BITS)
        return self.decoded[name]

    def _decode_rows(self, name: str, weight: StoredCodes, *, is_narrow: bool) -> Variable:
        if is_narrow or weight.scales.shape[1] != 1:
            raise UnsupportedError(f"coreml: '{name}': found codes in groups or of 4 bits, which need iOS 18.")
        zeros = weight.zero_points
        return self.builder.constexpr_affine_dequantize(
            quantized_data=weight.codes,
            zero_point=np.zeros(len(weight.codes), weight.codes.dtype) if zeros is None else zeros[:, 0],
            scale=weight.scales[:, 0],
            axis=np.int32(0),
            name=name,
        )

    def _decode_blocks(self, name: str, weight: StoredCodes, *, is_narrow: bool) -> Variable:
        typed = _narrow if is_narrow else np.asarray
        given = {} if weight.zero_points is None else {"offset": typed(weight.zero_points)}
        return self.builder.constexpr_blockwise_shift_scale(
            data=typed(weight.codes), scale=weight.scales, **given, name=name
        )


def is_decoded(value: ir.Value | None) -> bool:
    """Returns whether a value is what codes stand for."""
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def name_of(value: ir.Value) -> str:
    """Returns a graph's name as MIL spells names: letters, digits and underscores."""
    return re.sub(r"\W", "_", str(value.name), flags=re.ASCII)


def codes_name(name: str) -> str:
    """Returns what the floats of the codes called `name` in the graph are called in the program."""
    return re.sub(r"\W", "_", name.removesuffix(".codes"), flags=re.ASCII) + "_decoded"


def integers_of(value: ir.Value) -> np.ndarray:
    """Returns codes or zero points as int8 or uint8, one a byte, whatever the bits."""
    signed = value.dtype in (ir.DataType.INT8, ir.DataType.INT4)
    return _required(value).astype(np.int8 if signed else np.uint8)


def _required(value: ir.Value) -> np.ndarray:
    found = constant_of(value)
    if found is None:
        raise UnsupportedError(f"coreml: found '{value.name}' computed, expected constant codes. Export as onnx.")
    return found


def _narrow(array: np.ndarray) -> np.ndarray:
    """Returns codes in the element type that coremltools writes two a byte."""
    from coremltools.converters.mil.mil import types

    kind = types.int4 if array.dtype == np.int8 else types.uint4
    return array.astype(types.nptype_from_builtin(kind))
