"""Exports of every pico encoder against torch, opened by onnxruntime with default options as an app would."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import ModelError, UnsupportedError
from edgekit.exporters.onnx import choose_versions, require_mask_is_read
from edgekit.exporters.parity import make_batches
from edgekit.exporters.reference import load_reference
from edgekit.models.source import load_model
from tests.pico import ARCHITECTURES, pico_loaded, pico_model_artifact, pico_texts, publish_model

INT8 = {"bits": 8}
ALIKE = ("electra", "xlm-roberta", "mpnet")
"""Built like another of the list, so left to the slow tests."""
SORTS = [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in ARCHITECTURES]
SCHEMES = {
    "int8": INT8,
    "int8 without embeddings": {"bits": 8, "embeddings": None},
    "int8 full range weights only": {"bits": 8, "activations": "float"},
    "8 bits in groups": {"bits": 8, "group_size": 16, "activations": "float"},
    "4 bits in groups": {"bits": 4, "group_size": 16, "activations": "float"},
    "4 bits asymmetric": {"bits": 4, "group_size": 32, "activations": "float", "symmetric": False},
    "4 bits by channel": {"bits": 4, "activations": "float"},
    "3 bits in the room of 4": {"bits": 3, "group_size": 16, "activations": "float", "symmetric": False},
    "2 bits in groups": {"bits": 2, "group_size": 16, "activations": "float"},
}


def token_batches(model: Artifact):
    loaded = load_model(model)
    texts, _ = pico_texts(12, seed=5)
    ids = [loaded.tokenizer(text)["input_ids"] for text in texts]
    return make_batches(ids, [1, 3], pad_id=loaded.tokenizer.pad_token_id, max_length=32, seed=0)


def largest_difference(model: Artifact, export: Artifact) -> float:
    network = load_reference(model, export)
    session = onnxruntime.InferenceSession(export.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    largest = 0.0
    for input_ids, mask in token_batches(model):
        given = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": input_ids * 0}
        given = {name: given[name] for name in names}
        with torch.inference_mode():
            wanted = network(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
        largest = max(largest, float(abs(session.run(["logits"], given)[0] - wanted).max()))
    return largest


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("settings", [None, INT8])
def test_weights_that_are_not_finite_are_refused_by_name(wrong, settings, tmp_path):
    loaded = pico_loaded(layers=1)
    if settings is not None:
        floats = publish_model(loaded, tmp_path / "floats")
        loaded = load_model(edgekit.quantize(floats, edgekit.QuantizeConfig(**settings), out=tmp_path / "codes"))
    stored = loaded.model.state_dict()
    name = next(name for name in stored if name.endswith("dense.weight" if settings is None else ".weight_scales"))
    stored[name].view(-1)[1] = wrong
    model = publish_model(loaded, tmp_path / "model")
    with pytest.raises(ModelError, match=rf"model: tensor '{name}': found NaN or infinity, expected finite"):
        edgekit.export(model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", SORTS)
def test_float_export_is_torchs(architecture, tmp_path):
    model = pico_model_artifact(tmp_path / "model", architecture=architecture, layers=2)
    assert largest_difference(model, edgekit.export(model, out=tmp_path / "onnx")) < 1e-5


@pytest.mark.parametrize("architecture", SORTS)
def test_int8_export_is_the_codes_that_torch_runs(architecture, tmp_path):
    model = pico_model_artifact(tmp_path / "model", architecture=architecture, layers=2)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**INT8), out=tmp_path / "int8")
    # A float on the edge of two codes may be rounded either way; no such edge moves a pico logit by more.
    assert largest_difference(student, edgekit.export(student, out=tmp_path / "onnx")) < 5e-3


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_lowered_as_torch_runs_it(name, tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=2)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**SCHEMES[name]), out=tmp_path / "quantized")
    assert largest_difference(student, edgekit.export(student, out=tmp_path / "onnx")) < 5e-3


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_float_variants_of_a_quantized_student(precision, tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=2)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**INT8), out=tmp_path / "int8")
    export = edgekit.export(student, edgekit.ExportConfig(precision=precision), out=tmp_path / "onnx")
    assert largest_difference(student, export) < 1e-4
    assert not any("Quantize" in node.op_type for node in read(export).graph.node)


def read(export: Artifact) -> onnx.ModelProto:
    return onnx.load(export.path / "onnx" / "model.onnx")


def test_attention_is_fused_and_q_k_v_are_one_product(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=3)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**INT8), out=tmp_path / "int8")
    operators = [node.op_type for node in read(edgekit.export(student, out=tmp_path / "onnx")).graph.node]
    assert operators.count("MultiHeadAttention") == 3
    assert "Softmax" not in operators
    # one for q, k and v (two in the last layer, whose queries are of one token), one for the output, two feed-forward
    assert operators.count("DynamicQuantizeMatMul") <= 3 * 4 + 2


def test_the_first_token_saving_changes_nothing_in_float(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=2)
    whole = edgekit.export(model, edgekit.ExportConfig(first_token=False), out=tmp_path / "whole")
    assert largest_difference(model, whole) < 1e-5


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=2)
    assert edgekit.export(model, out=tmp_path / "a").digest == edgekit.export(model, out=tmp_path / "b").digest


def test_ceilings_hold_and_too_low_ones_are_refused(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    export = edgekit.export(model, edgekit.ExportConfig(opset=18, ir_version=8), out=tmp_path / "onnx")
    proto = read(export)
    assert max(entry.version for entry in proto.opset_import if entry.domain == "") == 18
    assert proto.ir_version <= 8
    assert largest_difference(model, export) < 1e-5
    with pytest.raises(UnsupportedError, match="expected at least opset 18"):
        choose_versions(17, 8)


def test_the_file_says_what_it_is(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    metadata = {entry.key: entry.value for entry in read(edgekit.export(model, out=tmp_path / "onnx")).metadata_props}
    assert model.digest in "".join(metadata.values())
    assert "negative" in "".join(metadata.values())


def test_a_graph_that_ignores_the_mask_is_refused():
    ids, mask = ir.val("input_ids"), ir.val("attention_mask")
    reads_ids = ir.node("Identity", [ids])
    with pytest.raises(UnsupportedError, match="nothing in the traced model reads attention_mask"):
        require_mask_is_read(ir.Graph([ids, mask], reads_ids.outputs, nodes=[reads_ids]))
    ids, mask = ir.val("input_ids"), ir.val("attention_mask")  # a value belongs to one graph
    reads_mask = ir.node("Mul", [ids, mask])
    require_mask_is_read(ir.Graph([ids, mask], reads_mask.outputs, nodes=[reads_mask]))
