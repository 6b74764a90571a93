"""Estimates what a device that is not here would take: the roofline of the model's work, never a measurement.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52 (2009): a call takes at
least the time to move its bytes, and at least the time to do its arithmetic. The work is counted on the graph that
onnxruntime executes, from the shapes that one profiled run reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from edgekit.errors import UsageError
from edgekit.results import AnyMeasurement, Estimate
from edgekit.runtimes.protocol import ModelOnDisk, format_of, model_bytes, model_file
from edgekit.target import Target

LOWEST_EFFICIENCY = 0.15
"""The pessimistic end: kernels that reach 15 % of a core's peak.

onnxruntime reached 34 % (int8, VNNI) and 46 to 90 % (float32) on a server core and 40 to 60 % on one with AVX2 only;
phone kernels and clocks under load do worse.
"""

RUNTIME_BYTES = 40 * 2**20
"""Most that a runtime's own library and its threads take beside the model."""

_INT8_MATMULS = frozenset(
    {"MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulNBits"}
)
_FLOAT_MATMULS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_COUNTABLE = ("onnx", "ort")
_TABLES = frozenset({"Gather", "GatherBlockQuantized"})
_WIDTHS = {"float": 4, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "int8": 1, "uint4": 0.5, "int4": 0.5}


class Shape(Protocol):
    """What is run; `BenchConfig` fits."""

    @property
    def batch(self) -> int:
        """Rows a call."""

    @property
    def length(self) -> int:
        """Tokens a row."""

    @property
    def threads(self) -> int:
        """Threads that one call may use."""


@dataclass(frozen=True)
class Node:
    """One executed operator: its name, and type and shape of its inputs and outputs."""

    operator: str
    inputs: list[tuple[str, list[int]]]
    """Without weights that the runtime packed at load: it no longer has them as such."""
    outputs: list[tuple[str, list[int]]]


@dataclass(frozen=True)
class Work:
    """What one call does."""

    int8_operations: int
    """In products of int8 matrices; a multiply and an add are two operations."""
    float32_operations: int
    """In products of float matrices, attention included."""
    bytes_touched: int
    """Weights read once; of an embedding table only the rows that are looked up. Activations stay in the cache."""


def estimate_latency(model: ModelOnDisk, target: Target, shape: Shape) -> Estimate:
    """Returns the range in which a call of that shape is likely to lie on the target, with the formula filled in.

    Raises:
        UsageError: onnxruntime does not run the model.
    """
    work = count_work(model, shape.batch, shape.length)
    threads = shape.threads
    bandwidth = target.memory_bandwidth_bytes_per_s.value
    int8_peak = target.peak_int8_operations_per_s.value
    float_peak = target.peak_float32_operations_per_s.value
    memory_ms = 1e3 * work.bytes_touched / bandwidth
    arithmetic_ms = 1e3 * (work.int8_operations / int8_peak + work.float32_operations / float_peak) / threads
    low = max(memory_ms, arithmetic_ms)
    formula = (
        f"max({work.bytes_touched / 1e6:.2f} MB / {bandwidth / 1e9:.1f} GB/s = {memory_ms:.3f} ms, "
        f"({work.int8_operations / 1e9:.3f} G int8 operations / {int8_peak / 1e9:.1f} G/s + "
        f"{work.float32_operations / 1e9:.3f} G float32 operations / {float_peak / 1e9:.1f} G/s) / {threads} "
        f"{'thread' if threads == 1 else 'threads'} = {arithmetic_ms:.3f} ms), up to 1 / {LOWEST_EFFICIENCY:g} of that"
    )
    return Estimate(
        quantity=f"latency of {shape.batch} x {shape.length} tokens on {target.name}",
        low=low,
        high=low / LOWEST_EFFICIENCY,
        unit="ms",
        formula=formula,
        assumptions=[
            f"Kernels reach {100 * LOWEST_EFFICIENCY:.0f} to 100 % of the peak of {target.cpu}.",
            "Only matrix products and attention count; normalization, activation functions and calls are left out.",
            "Weights are read from memory once a call, and activations stay in the cache.",
            "It runs at the clock that the target file's peaks are for, undisturbed.",
        ],
    )


def estimate_peak_memory(model: ModelOnDisk, target: Target, measurement: AnyMeasurement | None = None) -> Estimate:
    """Returns the range in which the memory that the model adds to an app is likely to lie.

    With a measurement of the same file on any machine it builds on what the model added there, which depends little on
    the processor; without one, on the file's size.

    Raises:
        ArtifactError: the artifact holds no model file.
    """
    size = model_bytes(model)
    runtime = f"{RUNTIME_BYTES / 2**20:.0f} MiB of runtime"
    added = 0 if measurement is None else measurement.peak_rss_bytes - measurement.library_rss_bytes
    if measurement is not None and measurement.library_rss_bytes > 0 and added > 0:
        low, high = added, math.ceil(1.5 * added) + RUNTIME_BYTES
        formula = f"{added / 2**20:.1f} MiB added by the model elsewhere, up to 1.5 times that + {runtime}"
        basis = f"Packed weights and buffers are as large there as on {measurement.machine.cpu}."
    else:
        low, high = size, 3 * size + RUNTIME_BYTES
        formula = f"{size / 2**20:.1f} MiB of model file, up to 3 times that + {runtime}"
        basis = "The runtime keeps the file, a packed copy of its weights, and buffers no larger than the file."
    return Estimate(
        quantity=f"peak memory on {target.name}",
        low=low,
        high=high,
        unit="bytes",
        formula=formula,
        assumptions=[basis, "The memory of the app itself is left out."],
    )


def is_countable(model: ModelOnDisk) -> bool:
    """Returns whether `count_work` can tell the work of such a model."""
    return format_of(model) in _COUNTABLE


def count_work(model: ModelOnDisk, batch: int, length: int) -> Work:
    """Returns the work of one call on (batch, length) tokens, from the operators that onnxruntime executes.

    Raises:
        UsageError: onnxruntime does not run the model.
    """
    if not is_countable(model):
        raise UsageError(
            f"{model.path}: found a model of kind '{format_of(model)}', expected {' or '.join(_COUNTABLE)}, whose "
            "operators onnxruntime tells."
        )
    return add_up(_executed_nodes(model, batch, length), model_bytes(model))


def add_up(nodes: Iterable[Node], weight_bytes: int) -> Work:
    """Returns the work of `nodes`, which read `weight_bytes` of weights, embedding tables included.

    A product with (..., K) inputs and (..., N) outputs costs 2 K for each output. Attention of T queries over S keys
    costs 4 B T S H: queries by keys, then shares by values.
    """
    int8 = floats = 0
    touched = float(weight_bytes)
    for node in nodes:
        if node.operator in _INT8_MATMULS:
            int8 += _matmul_operations(node)
        elif node.operator in _FLOAT_MATMULS:
            floats += _matmul_operations(node)
        elif node.operator == "MultiHeadAttention":
            floats += _attention_operations(node)
        elif node.operator in _TABLES and len(node.inputs[0][1]) == 2:
            table, rows = _size(node.inputs[0]), _size(node.outputs[0])
            touched -= max(0.0, table - rows)
    return Work(int8, floats, max(0, round(touched)))


def _matmul_operations(node: Node) -> int:
    return 2 * math.prod(node.outputs[0][1]) * node.inputs[0][1][-1]


def _attention_operations(node: Node) -> int:
    batch, queries, hidden = node.outputs[0][1]
    keys = node.inputs[1][1][1] if len(node.inputs) > 1 and len(node.inputs[1][1]) == 3 else queries
    return 4 * batch * queries * keys * hidden


def _size(tensor: tuple[str, list[int]]) -> float:
    return _WIDTHS.get(tensor[0], 4) * math.prod(tensor[1])


def _executed_nodes(model: ModelOnDisk, batch: int, length: int) -> list[Node]:
    """Runs the model once under onnxruntime's profiler and returns the operators with their shapes."""
    import numpy as np
    import onnxruntime

    from edgekit.runtimes.onnxruntime_runtime import PROVIDER, session_options
    from edgekit.runtimes.protocol import SessionConfig, select_inputs

    with TemporaryDirectory() as scratch:
        options = session_options(SessionConfig())
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(str(model_file(model)), options, providers=[PROVIDER])
        ids = np.ones((batch, length), dtype=np.int64)
        session.run(None, select_inputs([value.name for value in session.get_inputs()], ids, ids))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    executed = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return [
        Node(args["op_name"], _tensors(args["input_type_shape"]), _tensors(args["output_type_shape"]))
        for args in executed
    ]


def _tensors(described: list[dict[str, list[int]]]) -> list[tuple[str, list[int]]]:
    return [(kind, shape) for tensor in described for kind, shape in tensor.items()]
