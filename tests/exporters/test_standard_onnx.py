"""ONNX of standard operators alone: what torch computes, with the student's own codes in the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgekit
from edgekit.errors import UnsupportedError
from edgekit.exporters.parity import read_parity
from edgekit.models.quantized import QuantizedLinear, QuantizedModule
from edgekit.models.source import load_model
from tests.exporters.test_onnx import SCHEMES, largest_difference
from tests.pico import pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder

STANDARD = edgekit.ExportConfig(dialect="standard")
OTHERS = {
    "8 bits asymmetric": {"bits": 8, "symmetric": False, "reduce_range": False},
    "8 bits asymmetric in groups": {"bits": 8, "group_size": 16, "activations": "float", "symmetric": False},
    "a group longer than a row": {"bits": 4, "group_size": 64, "activations": "float", "embeddings": 4}
    | {"embeddings_group_size": 16},
}


def standard_export(settings, place, **options):
    model = pico_model_artifact(place / "model", layers=1, **options)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=place / "student")
    return student, edgekit.export(student, STANDARD, out=place / "onnx")


def read(export):
    return onnx.load(export.path / "onnx" / "model.onnx")


@pytest.mark.parametrize("name", [*SCHEMES, *OTHERS])
def test_every_scheme_is_torchs_and_its_codes_are_in_the_file(name, tmp_path):
    student, export = standard_export((SCHEMES | OTHERS)[name], tmp_path)
    rounds = (SCHEMES | OTHERS)[name].get("activations") != "float"
    assert largest_difference(student, export) < (5e-3 if rounds else 1e-5)
    proto = read(export)
    assert {node.domain for node in proto.graph.node} == {""}
    assert {entry.domain for entry in proto.opset_import} == {""}
    assert_codes(load_model(student).model, proto)


@pytest.mark.parametrize("architecture", ["albert", "roberta", "deberta-v2", "modernbert"])
def test_every_architecture_is_written_in_standard_operators(architecture, tmp_path):
    student, export = standard_export({"bits": 8}, tmp_path, architecture=architecture)
    assert largest_difference(student, export) < 5e-3
    assert {node.domain for node in read(export).graph.node} == {""}


def assert_codes(network, proto):
    """Compares codes, scales and zero points of every quantized module with the initializers, one by one."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    modules = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedModule)}
    seen = set()
    for owner in (name.removesuffix(".codes") for name in stored if name.endswith(".codes")):
        prefix, _, last = owner.rpartition(".")
        names = [f"{prefix}.{part}" for part in last.split("+")]
        seen.update(names)
        weights = [modules[name].quantized_weight() for name in names]
        for what in ("codes", "scales", "zero_points"):
            parts = [getattr(weight, what) for weight in weights]
            if parts[0] is None:
                continue
            wanted = np.concatenate([part.numpy() for part in parts])
            found = stored[f"{owner}.{what}"]
            if found.ndim == 1:
                found = found[:, None]
            transposed = what == "codes" and f"{owner}.total" in {node.name for node in proto.graph.node}
            found = found.T if transposed else found
            assert np.array_equal(found.astype(np.float32), wanted.astype(np.float32)), (owner, what)
    assert seen == set(modules)
    assert any(isinstance(module, QuantizedLinear) for module in modules.values())


def test_the_check_stage_passes_it(tmp_path):
    data = pico_data_artifact(tmp_path, rows=120)
    student, export = standard_export({"bits": 8}, tmp_path)
    config = edgekit.CheckConfig(rows=24)
    parity = read_parity(edgekit.check(export, config, reference=student, data=data, out=tmp_path / "parity"))
    assert parity.passed, parity.failures
    assert parity.runtime.startswith("onnxruntime 1.")


def test_int8_is_multiplied_as_integers(tmp_path):
    _, export = standard_export({"bits": 8}, tmp_path)
    operators = [node.op_type for node in read(export).graph.node]
    assert operators.count("MatMulInteger") == operators.count("DynamicQuantizeLinear") >= 4
    assert "DequantizeLinear" not in operators


def test_four_bit_codes_take_four_bits(tmp_path):
    _, export = standard_export(SCHEMES["4 bits in groups"], tmp_path)
    codes = [tensor for tensor in read(export).graph.initializer if tensor.name.endswith("dense.codes")]
    assert codes
    for tensor in codes:
        assert tensor.data_type == onnx.TensorProto.INT4
        assert len(tensor.raw_data) == np.prod(tensor.dims) // 2


def test_blocks_with_rounded_activations_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"module '.*': onnx in the standard dialect has no operator for Scheme"):
        standard_export({"bits": 4, "group_size": 16, "activations": "dynamic-int8"}, tmp_path)
    assert not (tmp_path / "onnx").exists()


def test_an_old_ceiling_and_a_language_model_are_refused(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    with pytest.raises(UnsupportedError, match="found the ceiling opset 20, expected at least 21"):
        edgekit.export(model, edgekit.ExportConfig(dialect="standard", opset=20), out=tmp_path / "a")
    decoder = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    with pytest.raises(UnsupportedError, match="found a model for the task 'causal-lm', expected a classifier"):
        edgekit.export(decoder, STANDARD, out=tmp_path / "b")
