"""Computes in numpy what a written Core ML program says: interpreted, not run.

Core ML runs on Apple's systems alone. Elsewhere this tells whether the program that lies in the file, with the
constants that lie in the file, says what torch computes; how Core ML computes it is seen on a Mac alone. Every operator
follows Apple's description of it, not the code that wrote it. Floats are float32, also where the program asks for
float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgekit.errors import UnsupportedError
from edgekit.exporters.coreml_file import WrittenProgram

Arguments = dict[str, Any]

_ERF = np.frompyfunc(math.erf, 1, 1)
_CASTS = {"fp32": np.float32, "fp16": np.float32, "int32": np.int32, "int16": np.int32, "bool": np.bool_}


def interpret(program: WrittenProgram, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the outputs of a program by name, for `inputs` by name.

    Raises:
        UnsupportedError: the program holds an operator that is not known here.
    """
    values: dict[str, Any] = {name: _widened(value) for name, value in program.constants.items()}
    values |= {name: _widened(codes.decoded()) for name, codes in program.codes.items()}
    values |= {name: inputs[name].astype(np.int32) for name in program.inputs}
    for operation in program.operations:
        if operation.kind not in _OPERATORS:
            raise UnsupportedError(f"coreml: found the operator '{operation.kind}', which cannot be interpreted.")
        # `values` of a concat is a list, everything else one array
        given = {key: [values[name] for name in names] for key, names in operation.inputs.items()}
        arguments = {key: found if key == "values" else found[0] for key, found in given.items()}
        made = _OPERATORS[operation.kind](arguments)
        results = made if isinstance(made, list) else [made]
        values |= dict(zip(operation.outputs, results, strict=True))
    return {name: values[name] for name in program.outputs}


def _widened(value: Any) -> Any:
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _both(function: Callable[[Any, Any], Any]) -> Callable[[Arguments], Any]:
    return lambda given: function(given["x"], given["y"])


def _one(function: Callable[[Any], Any]) -> Callable[[Arguments], Any]:
    return lambda given: function(given["x"])


def _integers(value: Any) -> list[int]:
    return [int(number) for number in np.atleast_1d(value)]


def _matmul(given: Arguments) -> Any:
    x, y = given["x"], given["y"]
    x = np.swapaxes(x, -1, -2) if bool(given.get("transpose_x", False)) else x
    y = np.swapaxes(y, -1, -2) if bool(given.get("transpose_y", False)) else y
    return x @ y


def _linear(given: Arguments) -> Any:
    product = given["x"] @ given["weight"].T
    return product + given["bias"] if "bias" in given else product


def _gelu(given: Arguments) -> Any:
    x, mode = given["x"], given.get("mode", "EXACT")
    if mode == "EXACT":
        return (x * np.float32(0.5) * (1 + _ERF(x / math.sqrt(2)).astype(np.float32))).astype(np.float32)
    if mode == "TANH_APPROXIMATION":
        return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).astype(np.float32)
    raise UnsupportedError(f"coreml: found gelu in the mode '{mode}', which cannot be interpreted.")


def _cast(given: Arguments) -> Any:
    with np.errstate(invalid="ignore"):  # the logarithm of zero as an integer, which no later operator takes
        return given["x"].astype(_CASTS[given["dtype"]])


def _softmax(given: Arguments) -> Any:
    axis = int(given["axis"])
    raised = np.exp(given["x"] - given["x"].max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def _layer_norm(given: Arguments) -> Any:
    x, axes = given["x"], tuple(_integers(given["axes"]))
    centered = x - x.mean(axis=axes, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(axis=axes, keepdims=True) + given["epsilon"])
    return (normal * given.get("gamma", np.float32(1)) + given.get("beta", np.float32(0))).astype(np.float32)


def _slice_by_index(given: Arguments) -> Any:
    x = given["x"]
    begin, end = _integers(given["begin"]), _integers(given["end"])
    stride = _integers(given.get("stride", np.ones(x.ndim, np.int32)))
    masks = {key: list(given.get(key, np.zeros(x.ndim, bool))) for key in ("begin_mask", "end_mask", "squeeze_mask")}
    cuts: list[Any] = []
    for axis in range(x.ndim):
        if masks["squeeze_mask"][axis]:
            cuts.append(begin[axis])
            continue
        first = None if masks["begin_mask"][axis] else begin[axis]
        last = None if masks["end_mask"][axis] else end[axis]
        cuts.append(slice(first, last, stride[axis]))
    return x[tuple(cuts)]


def _slice_by_size(given: Arguments) -> Any:
    x, begin, size = given["x"], _integers(given["begin"]), _integers(given["size"])
    ends = [x.shape[axis] if size[axis] == -1 else begin[axis] + size[axis] for axis in range(x.ndim)]
    return x[tuple(slice(first, last) for first, last in zip(begin, ends, strict=True))]


def _gather(given: Arguments) -> Any:
    if int(given.get("batch_dims", 0)):
        raise UnsupportedError("coreml: found gather with batch dimensions, which cannot be interpreted.")
    return np.take(given["x"], _indices(given), axis=int(given.get("axis", 0)))


def _gather_nd(given: Arguments) -> Any:
    indices = np.moveaxis(_indices(given), -1, 0)
    return given["x"][tuple(indices)]


def _gather_along_axis(given: Arguments) -> Any:
    axis = int(given.get("axis", 0))
    return np.take_along_axis(given["x"], _indices(given), axis=axis)


def _indices(given: Arguments) -> Any:
    """Returns the indices of a gather; Core ML reads beyond the array where one is below zero."""
    indices = given["indices"].astype(np.int64)
    if indices.size and indices.min() < 0:
        raise UnsupportedError(
            f"coreml: found the index {indices.min()} in a gather, expected 0 or more: Core ML counts none from the "
            "end. Export the model as onnx."
        )
    return indices


def _squeeze(given: Arguments) -> Any:
    axes = tuple(_integers(given["axes"])) if "axes" in given else None
    return np.squeeze(given["x"], axis=axes)


def _split(given: Arguments) -> list[Any]:
    axis = int(given["axis"])
    if "split_sizes" in given:
        bounds = np.cumsum(_integers(given["split_sizes"]))[:-1]
        return list(np.split(given["x"], bounds, axis=axis))
    return list(np.split(given["x"], int(given["num_splits"]), axis=axis))


def _fill(given: Arguments) -> Any:
    value = np.asarray(given["value"])
    return np.full(_integers(given["shape"]), value, dtype=value.dtype)


def _range(given: Arguments) -> Any:
    return np.arange(int(given["start"]), int(given["end"]), int(given["step"]), dtype=np.int32)


def _cumsum(given: Arguments) -> Any:
    if bool(given.get("exclusive", False)) or bool(given.get("reverse", False)):
        raise UnsupportedError("coreml: found cumsum, exclusive or reversed, which cannot be interpreted.")
    return np.cumsum(given["x"], axis=int(given.get("axis", 0)), dtype=given["x"].dtype)


def _log(given: Arguments) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(given["x"] + given.get("epsilon", np.float32(0)))


def _reduced(function: Callable[..., Any]) -> Callable[[Arguments], Any]:
    def reduce(given: Arguments) -> Any:
        axes = tuple(_integers(given["axes"])) if "axes" in given else None
        return function(given["x"], axis=axes, keepdims=bool(given.get("keep_dims", False)))

    return reduce


_OPERATORS: dict[str, Callable[[Arguments], Any]] = {
    "abs": _one(np.abs),
    "add": _both(np.add),
    "cast": _cast,
    "ceil": _one(np.ceil),
    "concat": lambda given: np.concatenate(given["values"], axis=int(given["axis"])),
    "cos": _one(np.cos),
    "cumsum": _cumsum,
    "equal": _both(np.equal),
    "expand_dims": lambda given: np.expand_dims(given["x"], tuple(_integers(given["axes"]))),
    "fill": _fill,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "gelu": _gelu,
    "greater": _both(np.greater),
    "greater_equal": _both(np.greater_equal),
    "identity": _one(np.copy),
    "layer_norm": _layer_norm,
    "less": _both(np.less),
    "less_equal": _both(np.less_equal),
    "linear": _linear,
    "log": _log,
    "logical_and": _both(np.logical_and),
    "logical_not": _one(np.logical_not),
    "logical_or": _both(np.logical_or),
    "matmul": _matmul,
    "maximum": _both(np.maximum),
    "minimum": _both(np.minimum),
    "mul": _both(np.multiply),
    "range_1d": _range,
    "real_div": _both(np.divide),
    "reduce_mean": _reduced(np.mean),
    "reduce_sum": _reduced(np.sum),
    "relu": lambda given: np.maximum(given["x"], 0),
    "reshape": lambda given: given["x"].reshape(_integers(given["shape"])),
    "select": lambda given: np.where(given["cond"], given["a"], given["b"]),
    "shape": lambda given: np.array(given["x"].shape, dtype=np.int32),
    "sigmoid": lambda given: 1 / (1 + np.exp(-given["x"])),
    "sign": _one(np.sign),
    "sin": _one(np.sin),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "softmax": _softmax,
    "split": _split,
    "sqrt": _one(np.sqrt),
    "squeeze": _squeeze,
    "sub": _both(np.subtract),
    "tanh": _one(np.tanh),
    "tile": lambda given: np.tile(given["x"], _integers(given["reps"])),
    "transpose": lambda given: np.transpose(given["x"], _integers(given["perm"])),
}
"""Every operator that the table of `coreml_operators.py` writes, and those that coremltools' passes make of them."""
