"""THE table: ONNX operator to the operators of Core ML's ML programs (MIL) that compute the same.

It covers the graphs of `lowering` in the standard dialect. What it does not hold is refused by name in
`coreml_program.py`; nothing is approximated. Core ML knows no int64: integers are int32, which ids and positions fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError

Variable = Any
"""A variable of a MIL program; coremltools has no types."""

_INT32 = np.iinfo(np.int32)
_TYPES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp32",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int32",
    ir.DataType.BOOL: "bool",
}
"""What a Cast to an ONNX type is in MIL; half floats are only how a file keeps what is computed in float32."""


@dataclass(frozen=True)
class Call:
    """One node of the graph while it is lowered."""

    builder: Any
    """coremltools' `Builder`."""
    node: ir.Node
    inputs: Sequence[Variable]
    """The node's inputs in the program; None where it leaves one out."""
    name: str
    """What the operator that gives the node's output is called."""

    def attribute(self, name: str, default: int | None = None) -> int:
        """Returns an integer attribute.

        Raises:
            UnsupportedError: the node has none, and there is no default.
        """
        if name in self.node.attributes:
            return int(self.node.attributes[name].as_int())
        if default is None:
            raise UnsupportedError(f"coreml: found {self.node.op_type} without '{name}', expected it. Export as onnx.")
        return default

    def is_float(self) -> bool:
        """Returns whether the first input holds floats."""
        return self._type() == ir.DataType.FLOAT

    def is_boolean(self) -> bool:
        """Returns whether the first input holds booleans."""
        return self._type() == ir.DataType.BOOL

    def _type(self) -> ir.DataType | None:
        first = self.node.inputs[0]
        return None if first is None else first.dtype

    def integers(self, index: int) -> list[int]:
        """Returns the values of an input that must be constant.

        Raises:
            UnsupportedError: it is computed.
        """
        found = self.inputs[index]
        if found is None or found.val is None:
            raise UnsupportedError(
                f"coreml: found {self.node.op_type} whose input {index} is computed, expected a constant. "
                "Export as onnx."
            )
        return [int(value) for value in np.atleast_1d(found.val)]


Lowering = Callable[[Call], Any]


def stored(array: np.ndarray) -> np.ndarray:
    """Returns a constant in a type that Core ML has: int64 as int32 (bounds of slices may be larger), half as float."""
    if array.dtype == np.int64:
        array = np.clip(array, _INT32.min, _INT32.max).astype(np.int32)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _plain(operator: str, *keys: str, **defaults: int) -> Lowering:
    """Returns what writes one operator that takes the node's inputs by `keys`, and integer attributes by their name."""

    def lower(call: Call) -> Variable:
        given = dict(zip(keys, call.inputs, strict=True))
        attributes = {name: call.attribute(name, default) for name, default in defaults.items()}
        return getattr(call.builder, operator)(**given, **attributes, name=call.name)

    return lower


def _chained(operator: str) -> Lowering:
    """Returns what writes Sum, Max and Min, which take any number of inputs."""

    def lower(call: Call) -> Variable:
        total = call.inputs[0]
        for index, term in enumerate(call.inputs[1:], start=2):
            named = {"name": call.name} if index == len(call.inputs) else {}
            total = getattr(call.builder, operator)(x=total, y=term, **named)
        return total

    return lower


def _gelu(call: Call) -> Variable:
    approximate = call.node.attributes.get("approximate")
    is_tanh = approximate is not None and approximate.as_string() == "tanh"
    mode = "TANH_APPROXIMATION" if is_tanh else "EXACT"
    return call.builder.gelu(x=call.inputs[0], mode=mode, name=call.name)


def _cast(call: Call) -> Variable:
    wanted = ir.DataType(call.attribute("to"))
    if wanted not in _TYPES:
        raise UnsupportedError(f"coreml: found a Cast to {wanted.name.lower()}, which Core ML lacks. Export as onnx.")
    return call.builder.cast(x=call.inputs[0], dtype=_TYPES[wanted], name=call.name)


def _shape(call: Call) -> Variable:
    source = call.inputs[0]
    start, end = call.attribute("start", 0), call.attribute("end", source.rank)
    sizes = call.builder.shape(x=source)
    if (start, end) == (0, source.rank):
        return sizes
    return call.builder.slice_by_size(x=sizes, begin=[start], size=[end - start], name=call.name)


def _squeeze(call: Call) -> Variable:
    given = {} if len(call.inputs) == 1 else {"axes": call.integers(1)}
    return call.builder.squeeze(x=call.inputs[0], **given, name=call.name)


def _unsqueeze(call: Call) -> Variable:
    return call.builder.expand_dims(x=call.inputs[0], axes=call.integers(1), name=call.name)


def _transpose(call: Call) -> Variable:
    perm = list(call.node.attributes["perm"].as_ints())
    return call.builder.transpose(x=call.inputs[0], perm=perm, name=call.name)


def _concat(call: Call) -> Variable:
    return call.builder.concat(values=list(call.inputs), axis=call.attribute("axis"), name=call.name)


def _split(call: Call) -> Variable:
    axis = call.attribute("axis", 0)
    if len(call.inputs) > 1:
        return call.builder.split(x=call.inputs[0], split_sizes=call.integers(1), axis=axis, name=call.name)
    count = len(call.node.outputs)
    return call.builder.split(x=call.inputs[0], num_splits=count, axis=axis, name=call.name)


def _slice(call: Call) -> Variable:
    """Slices along constant axes from constant starts; the end may be computed, such as the length of the text."""
    source, ends = call.inputs[0], call.inputs[2]
    starts, rank = call.integers(1), source.rank
    axes = [axis % rank for axis in (call.integers(3) if len(call.inputs) > 3 else range(len(starts)))]
    steps = call.integers(4) if len(call.inputs) > 4 else [1] * len(axes)
    begin, stride, kept = [0] * rank, [1] * rank, [True] * rank
    for axis, start, step in zip(axes, starts, steps, strict=True):
        begin[axis], stride[axis], kept[axis] = start, step, False
    end, open_ended = _ends(call, axes, rank) if ends.val is not None else _computed_end(call, axes, rank)
    return call.builder.slice_by_index(
        x=source, begin=begin, end=end, stride=stride, begin_mask=kept, end_mask=open_ended, name=call.name
    )


def _ends(call: Call, axes: Sequence[int], rank: int) -> tuple[list[int], list[bool]]:
    """Returns constant ends, and where a slice goes on to the last element."""
    end, open_ended = [0] * rank, [True] * rank
    for axis, value in zip(axes, call.integers(2), strict=True):
        end[axis], open_ended[axis] = value, value == _INT32.max
    return end, open_ended


def _computed_end(call: Call, axes: Sequence[int], rank: int) -> tuple[Variable, list[bool]]:
    """Returns the same for one axis whose end is computed.

    Raises:
        UnsupportedError: there are several.
    """
    if len(axes) != 1:
        raise UnsupportedError("coreml: found a Slice with several computed ends, expected one. Export as onnx.")
    around = [np.zeros(axes[0], np.int32), call.inputs[2], np.zeros(rank - axes[0] - 1, np.int32)]
    pieces = [piece for place, piece in enumerate(around) if place == 1 or len(piece)]
    return call.builder.concat(values=pieces, axis=0), [axis != axes[0] for axis in range(rank)]


def _gather_nd(call: Call) -> Variable:
    """Core ML gathers numbers: booleans go through int32."""
    if call.attribute("batch_dims", 0):
        raise UnsupportedError("coreml: found GatherND with batch dimensions, expected none. Export as onnx.")
    source, indices = call.inputs
    if not call.is_boolean():
        return call.builder.gather_nd(x=source, indices=indices, name=call.name)
    numbers = call.builder.gather_nd(x=call.builder.cast(x=source, dtype="int32"), indices=indices)
    return call.builder.cast(x=numbers, dtype="bool", name=call.name)


def _expand(call: Call) -> Variable:
    """Broadcasts by multiplying with ones: exact, and Core ML has no operator of its own for computed shapes."""
    source, shape = call.inputs
    if call.is_boolean():
        ones = call.builder.fill(shape=shape, value=np.int32(1))
        numbers = call.builder.mul(x=call.builder.cast(x=source, dtype="int32"), y=ones)
        return call.builder.cast(x=numbers, dtype="bool", name=call.name)
    ones = call.builder.fill(shape=shape, value=np.float32(1) if call.is_float() else np.int32(1))
    return call.builder.mul(x=source, y=ones, name=call.name)


def _clip(call: Call) -> Variable:
    clipped, low, high = (*call.inputs, None, None)[:3]
    if low is not None:
        clipped = call.builder.maximum(x=clipped, y=low)
    return clipped if high is None else call.builder.minimum(x=clipped, y=high, name=call.name)


def _negate(call: Call) -> Variable:
    minus = np.float32(-1) if call.is_float() else np.int32(-1)
    return call.builder.mul(x=call.inputs[0], y=minus, name=call.name)


def _log(call: Call) -> Variable:
    return call.builder.log(x=call.inputs[0], epsilon=0.0, name=call.name)


def _cumulative_sum(call: Call) -> Variable:
    axis = call.integers(1)[0]
    return call.builder.cumsum(x=call.inputs[0], axis=axis, name=call.name)


def _layer_norm(call: Call) -> Variable:
    source, gain, bias = (*call.inputs, None)[:3]
    epsilon = np.float32(call.node.attributes["epsilon"].as_float())
    given = {} if bias is None else {"beta": bias}
    axis = call.attribute("axis", -1) % source.rank
    axes = list(range(axis, source.rank))
    return call.builder.layer_norm(x=source, axes=axes, gamma=gain, **given, epsilon=epsilon, name=call.name)


def _reduce(operator: str) -> Lowering:
    def lower(call: Call) -> Variable:
        keep = bool(call.attribute("keepdims", 1))
        return getattr(call.builder, operator)(x=call.inputs[0], axes=call.integers(1), keep_dims=keep, name=call.name)

    return lower


OPERATORS: dict[str, Lowering] = {
    "Abs": _plain("abs", "x"),
    "Add": _plain("add", "x", "y"),
    "And": _plain("logical_and", "x", "y"),
    "Cast": _cast,
    "Ceil": _plain("ceil", "x"),
    "Clip": _clip,
    "Concat": _concat,
    "Cos": _plain("cos", "x"),
    "CumSum": _cumulative_sum,
    "Div": _plain("real_div", "x", "y"),
    "Equal": _plain("equal", "x", "y"),
    "Expand": _expand,
    "Gather": _plain("gather", "x", "indices", axis=0),
    "GatherElements": _plain("gather_along_axis", "x", "indices", axis=0),
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Greater": _plain("greater", "x", "y"),
    "GreaterOrEqual": _plain("greater_equal", "x", "y"),
    "LayerNormalization": _layer_norm,
    "Less": _plain("less", "x", "y"),
    "LessOrEqual": _plain("less_equal", "x", "y"),
    "Log": _log,
    "MatMul": _plain("matmul", "x", "y"),
    "Max": _chained("maximum"),
    "Min": _chained("minimum"),
    "Mul": _plain("mul", "x", "y"),
    "Neg": _negate,
    "Not": _plain("logical_not", "x"),
    "Or": _plain("logical_or", "x", "y"),
    "Range": _plain("range_1d", "start", "end", "step"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceSum": _reduce("reduce_sum"),
    "Relu": _plain("relu", "x"),
    "Reshape": _plain("reshape", "x", "shape"),
    "Shape": _shape,
    "Sigmoid": _plain("sigmoid", "x"),
    "Sign": _plain("sign", "x"),
    "Sin": _plain("sin", "x"),
    "Slice": _slice,
    "Softmax": _plain("softmax", "x", axis=-1),
    "Split": _split,
    "Sqrt": _plain("sqrt", "x"),
    "Squeeze": _squeeze,
    "Sub": _plain("sub", "x", "y"),
    "Sum": _chained("add"),
    "Tanh": _plain("tanh", "x"),
    "Tile": _plain("tile", "x", "reps"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain("select", "cond", "a", "b"),
}
"""ONNX operator to what writes it. Constants, codes and products with them are `coreml_program.py`'s matter."""
