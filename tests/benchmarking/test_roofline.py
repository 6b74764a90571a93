"""Counting work, and the estimates that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from edgekit.benchmarking.roofline import (
    LOWEST_EFFICIENCY,
    RUNTIME_BYTES,
    Node,
    add_up,
    count_work,
    estimate_latency,
    estimate_peak_memory,
)
from edgekit.errors import UsageError
from edgekit.runtimes.protocol import model_bytes
from edgekit.target import load_target
from tests.benchmarking.examples import measurement, steady
from tests.pico import pico_model_artifact, pico_tokenizer
from tests.runtimes.tiny import HIDDEN, tiny_onnx_artifact


@dataclass(frozen=True)
class Shape:
    batch: int = 1
    length: int = 16
    threads: int = 1


def test_operators_by_hand():
    nodes = [
        Node("DynamicQuantizeMatMul", [("float", [1, 64, 384])], [("float", [1, 64, 1536])]),
        Node("FusedMatMul", [("float", [1, 12, 64, 32]), ("float", [1, 12, 32, 64])], [("float", [1, 12, 64, 64])]),
        Node("MultiHeadAttention", [("float", [2, 10, 8]), ("float", [2, 30, 8])], [("float", [2, 10, 8])]),
        Node("Gather", [("int8", [1000, 384]), ("int64", [1, 64])], [("int8", [1, 64, 384])]),
        Node("LayerNormalization", [("float", [1, 64, 384])], [("float", [1, 64, 384])]),
    ]
    work = add_up(nodes, 1_000_000)
    assert work.int8_operations == 2 * 64 * 384 * 1536
    assert work.float32_operations == 2 * 12 * 64 * 64 * 32 + 4 * 2 * 10 * 30 * 8
    assert work.bytes_touched == 1_000_000 - 1000 * 384 + 64 * 384


def test_a_small_table_is_not_subtracted_twice():
    """More rows are read than the table has: every row of it is."""
    work = add_up([Node("Gather", [("float", [2, 8]), ("int64", [1, 64])], [("float", [1, 64, 8])])], 64)
    assert work.bytes_touched == 64


def test_work_of_a_real_session(tmp_path):
    artifact = tiny_onnx_artifact(tmp_path / "onnx")
    work = count_work(artifact, 2, 16)
    vocabulary = len(pico_tokenizer("bert"))
    assert work.int8_operations == 0
    assert work.float32_operations == 2 * 2 * 2 * HIDDEN  # two operations, two rows, two labels
    assert work.bytes_touched == model_bytes(artifact) - 4 * HIDDEN * (vocabulary - 2 * 16)


def test_the_formula_gives_the_estimate(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("raspberry-pi-5")
    found = estimate_latency(artifact, target, Shape())
    work = count_work(artifact, 1, 16)
    memory_s = work.bytes_touched / target.memory_bandwidth_bytes_per_s.value
    arithmetic_s = work.float32_operations / target.peak_float32_operations_per_s.value
    assert found.low == pytest.approx(1e3 * max(memory_s, arithmetic_s))
    assert found.high == pytest.approx(found.low / LOWEST_EFFICIENCY)
    assert (found.unit, target.name in found.quantity) == ("ms", True)
    assert "17.1 GB/s" in found.formula
    assert found.assumptions


def test_threads_share_the_arithmetic_but_not_the_bandwidth(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("pixel-8")
    slow = target.model_copy(
        update={"peak_float32_operations_per_s": target.peak_float32_operations_per_s.model_copy(update={"value": 1.0})}
    )
    one, two = (estimate_latency(artifact, slow, Shape(threads=threads)) for threads in (1, 2))
    assert two.low == pytest.approx(one.low / 2)
    fixed = [estimate_latency(artifact, target, Shape(threads=threads)).low for threads in (1, 2)]
    assert fixed[0] == fixed[1]


def test_a_torch_model_has_no_estimate(tmp_path):
    with pytest.raises(UsageError, match="expected onnx or ort, whose operators"):
        count_work(pico_model_artifact(tmp_path, layers=1), 1, 8)


def test_memory_follows_from_a_measurement_or_else_from_the_file(tmp_path):
    artifact, target = tiny_onnx_artifact(tmp_path / "onnx"), load_target("pixel-8")
    size = model_bytes(artifact)
    by_size = estimate_peak_memory(artifact, target)
    assert (by_size.low, by_size.high) == (size, 3 * size + RUNTIME_BYTES)
    measured = measurement(steady(1.0), peak_rss_bytes=100 * 2**20, library_rss_bytes=60 * 2**20)
    by_measurement = estimate_peak_memory(artifact, target, measured)
    assert by_measurement.low == 40 * 2**20
    assert by_measurement.high == 60 * 2**20 + RUNTIME_BYTES
    assert by_measurement.unit == "bytes"
