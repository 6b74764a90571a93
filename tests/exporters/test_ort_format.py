"""onnxruntime's own format: what the ONNX file computes, and the operators that a reduced build needs."""

from __future__ import annotations

import logging
import re

import numpy as np
import onnx
import onnxruntime
import pytest

import edgekit
from edgekit.errors import UnsupportedError
from edgekit.exporters.description import read_description
from edgekit.exporters.parity import read_parity
from edgekit.runtimes.protocol import SessionConfig, get_runtime, model_bytes, runtime_for
from tests.exporters.test_onnx import SCHEMES
from tests.exporters.test_openvino import batch
from tests.pico import pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder

ORT = edgekit.ExportConfig(format="ort")


def quantized(settings, place):
    model = pico_model_artifact(place / "model", layers=1)
    return edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=place / "student")


@pytest.mark.parametrize("name", ["int8", "8 bits in groups", "4 bits asymmetric"])
def test_it_computes_exactly_what_the_onnx_file_computes(name, tmp_path):
    student = quantized(SCHEMES[name], tmp_path)
    plain, made = (
        edgekit.export(student, edgekit.ExportConfig(format=each), out=tmp_path / each) for each in ("onnx", "ort")
    )
    runtime = get_runtime("onnxruntime")
    ours, theirs = (runtime.open(each, SessionConfig()) for each in (made, plain))
    for seed, (rows, length) in enumerate([(1, 5), (3, 11), (2, 16)]):
        inputs = batch(seed, rows, length)
        np.testing.assert_array_equal(ours.run(inputs)["logits"], theirs.run(inputs)["logits"])
    assert model_bytes(made) == (made.path / "model.ort").stat().st_size


def test_the_required_operators_are_those_that_onnxruntime_runs(tmp_path):
    student = quantized({"bits": 8}, tmp_path)
    made = edgekit.export(student, ORT, out=tmp_path / "ort")
    text = (made.path / "required_operators.config").read_text()
    assert "#" not in text
    listed = {name for line in text.splitlines() for name in re.findall(r"(\w+)(?:\{|,|$)", line.split(";", 2)[2])}
    assert {"DynamicQuantizeMatMul", "MultiHeadAttention", "LayerNormalization", "Gather"} <= listed
    assert "com.microsoft;1;" in text
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "back.onnx")
    onnxruntime.InferenceSession(str(made.path / "model.ort"), options)
    executed = {node.op_type for node in onnx.load(tmp_path / "back.onnx").graph.node}
    assert executed <= listed


def test_codes_that_onnxruntimes_tool_has_no_name_for_leave_the_operators_without_types(tmp_path):
    student = quantized({"bits": 4, "group_size": 32, "activations": "float"}, tmp_path)
    made = edgekit.export(student, edgekit.ExportConfig(format="ort", dialect="standard"), out=tmp_path / "ort")
    text = (made.path / "required_operators.config").read_text()
    assert "DequantizeLinear" in text
    assert "{" not in text


def test_it_passes_the_check_and_opens_in_onnxruntime_by_default(tmp_path):
    student = quantized({"bits": 8}, tmp_path)
    made = edgekit.export(student, ORT, out=tmp_path / "ort")
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=16)
    assert read_parity(edgekit.check(made, config, reference=student, data=data, out=tmp_path / "parity")).passed
    assert runtime_for(made).name == "onnxruntime"
    assert read_description(made.path).format == "ort"


def test_nobodys_logging_is_touched(tmp_path):
    root = logging.getLogger()
    before = root.level, list(root.handlers), logging.root.manager.disable
    edgekit.export(quantized({"bits": 8}, tmp_path), ORT, out=tmp_path / "ort")
    assert (root.level, root.handlers, logging.root.manager.disable) == before


def test_a_language_model_is_refused_with_the_reason(tmp_path):
    model = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    with pytest.raises(UnsupportedError, match=r"ort: found a model for the task 'causal-lm', expected text-classific"):
        edgekit.export(model, ORT, out=tmp_path / "ort")
