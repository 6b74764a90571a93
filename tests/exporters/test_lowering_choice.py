"""Exports that follow a choice of lowerings: the same codes, the numbers of torch, and choices that do not fit."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, UnsupportedError, UsageError
from edgekit.exporters.description import read_description
from edgekit.exporters.linear_kernels import possible_lowerings
from edgekit.exporters.lowering_choice import LinearShape
from edgekit.exporters.lowering_names import takes_floats
from edgekit.exporters.onnx import OnnxSettings
from edgekit.exporters.parity import read_parity
from edgekit.exporters.reference import load_reference, rounds_activations
from edgekit.models.codes import Scheme
from edgekit.models.quantized import QuantizedLinear
from edgekit.models.source import load_model
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.tuning.probe import Probe
from tests.exporters.test_onnx import largest_difference, read
from tests.pico import pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder
from tests.tuning.choices import made_up_choice, publish_choice

SETTINGS = OnnxSettings(opset=18, ir_version=8, first_token=False, half=False, metadata={})
SCHEMES = {
    "int8": ({"bits": 8}, ("dynamic-int8", "decoded")),
    "8 bits in groups": ({"bits": 8, "group_size": 16}, ("n-bits-int8", "n-bits-float", "decoded")),
    "4 bits in groups": ({"bits": 4, "group_size": 16}, ("n-bits-int8", "n-bits-float", "decoded")),
    "4 bits asymmetric": (
        {"bits": 4, "group_size": 32, "symmetric": False, "activations": "float"},
        ("n-bits-float", "decoded"),
    ),
    "3 bits by channel": ({"bits": 3, "activations": "float"}, ("n-bits-float", "decoded")),
    "2 bits in groups": ({"bits": 2, "group_size": 16, "activations": "float"}, ("n-bits-float", "decoded")),
}


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """One layer of a pico model in each scheme."""
    root = tmp_path_factory.mktemp("students")
    model = pico_model_artifact(root / "model", layers=1)
    return {
        name: edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=root / name.replace(" ", "-"))
        for name, (settings, _) in SCHEMES.items()
    }


@pytest.fixture(scope="module")
def int8(students):
    return students["int8"]


@pytest.fixture(scope="module")
def exports(students, tmp_path_factory):
    """A student's export with all linears written in one way, each made once."""

    @cache
    def export(name: str, lowering: str) -> Artifact:
        return export_with(students[name], lambda shape: lowering, tmp_path_factory.mktemp("export"))

    return export


def decoded(shape: LinearShape):
    return "decoded"


def export_with(model: Artifact, pick, out, **settings) -> Artifact:
    lowering = publish_choice(made_up_choice(model, pick), out / "choice")
    return edgekit.export(model, edgekit.ExportConfig(**settings), lowering=lowering, out=out / "onnx")


def codes_of(export: Artifact) -> dict[str, np.ndarray]:
    found = read(export).graph.initializer
    return {entry.name: numpy_helper.to_array(entry) for entry in found if entry.name.endswith(".codes")}


CASES = [(name, lowering) for name, (_, lowerings) in SCHEMES.items() for lowering in lowerings]


@pytest.mark.parametrize(("name", "lowering"), CASES)
def test_every_way_that_a_scheme_allows_computes_what_torch_does(name, lowering, students, exports):
    student, export = students[name], exports(name, lowering)
    rounds = lowering.endswith("int8")
    assert largest_difference(student, export) < (5e-3 if rounds else 1e-5)
    assert rounds_activations(student, export) is rounds
    assert set(read_description(export.path).lowerings.values()) == {lowering}
    operators = {node.op_type for node in read(export).graph.node}
    assert ("DynamicQuantizeMatMul" in operators) is (lowering == "dynamic-int8")
    assert ("MatMulNBits" in operators) is lowering.startswith("n-bits")


@pytest.mark.parametrize("name", SCHEMES)
def test_the_file_holds_the_very_codes_however_they_are_written(name, exports):
    usual, other = codes_of(exports(name, SCHEMES[name][1][0])), codes_of(exports(name, "decoded"))
    assert set(usual) == set(other) != set()
    for key, codes in usual.items():
        one, two = sorted((codes, other[key]), key=lambda array: array.ndim)
        if one.ndim != two.ndim:  # 8 bits in groups: (in, out), or (out, blocks, bytes) of codes plus 128
            one, two = one.T.astype(np.int16) + 128, two.reshape(two.shape[0], -1)
        np.testing.assert_array_equal(one, two, err_msg=key)


@pytest.mark.parametrize(("group_size", "columns"), [(16, 32), (None, 32), (None, 40), (16, 40)])
@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, True), (4, False), (3, True), (2, True)])
def test_decoded_codes_are_the_floats_that_they_stand_for_to_the_bit(bits, symmetric, group_size, columns, tmp_path):
    """Rows of the identity pick columns of the weight."""
    scheme = Scheme(bits=bits, group_size=group_size, symmetric=symmetric, activations="float")
    weights = torch.randn(24, columns, generator=torch.Generator().manual_seed(bits))
    tensor = quantize_tensor(weights, scheme)
    linear = QuantizedLinear(columns, 24, bias=False, scheme=scheme)
    linear.set_weight(tensor)
    shape = LinearShape(in_features=columns, out_features=24, scheme=scheme, single_token=False)
    probe = Probe(shape, [[linear]], np.eye(columns, dtype=np.float32))
    file = probe.write(tmp_path / "probe", "decoded", SETTINGS)
    session = onnxruntime.InferenceSession(file.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"input_ids": np.arange(columns, dtype=np.int64)[:, None]})[0]
    np.testing.assert_array_equal(found, tensor.dequantize().numpy().T)


def test_half_bytes_by_hand(tmp_path):
    """Codes -8, 7, 1, 0 by two scales: bytes 0xF0 and 0x89, floats -4, 3.5, 0.25, 0."""
    scheme = Scheme(bits=4, group_size=2, activations="float")
    linear = QuantizedLinear(4, 1, bias=False, scheme=scheme)
    linear.weight_codes = torch.tensor([[0xF0, 0x89]], dtype=torch.uint8)
    linear.weight_scales = torch.tensor([[0.5, 0.25]], dtype=torch.float16)
    shape = LinearShape(in_features=4, out_features=1, scheme=scheme, single_token=False)
    file = Probe(shape, [[linear]], np.eye(4, dtype=np.float32)).write(tmp_path / "probe", "decoded", SETTINGS)
    session = onnxruntime.InferenceSession(file.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"input_ids": np.arange(4, dtype=np.int64)[:, None]})[0]
    assert found[:, 0].tolist() == [-4.0, 3.5, 0.25, 0.0]


def test_a_choice_of_the_usual_way_gives_the_usual_bytes_and_without_one_nothing_is_said(int8, exports, tmp_path):
    plain, export = edgekit.export(int8, out=tmp_path / "plain"), exports("int8", "dynamic-int8")
    assert plain.files["onnx/model.onnx"] == export.files["onnx/model.onnx"]
    assert "lowerings" not in json.loads((plain.path / "export.json").read_text())
    assert "lowering" not in plain.lineage.inputs


def test_each_shape_follows_its_own_row_and_the_same_choice_gives_the_same_bytes(int8, tmp_path):
    def pick(shape: LinearShape):
        return "decoded" if shape.out_features == 64 else "dynamic-int8"

    export, again = (export_with(int8, pick, tmp_path / name) for name in ("a", "b"))
    assert export.digest == again.digest
    assert export.lineage.inputs["lowering"].digest == Artifact.open(tmp_path / "a" / "choice").digest
    said = read_description(export.path)
    wide = {name for name, lowering in said.lowerings.items() if lowering == "decoded"}
    assert wide == takes_floats(said.lowerings)
    assert {name.rpartition("encoder.")[2] for name in wide} >= {"layer.0.intermediate.dense"}
    assert not any(name.endswith("attention.output.dense") for name in wide)
    assert any("measured: onnxruntime 1, 1 thread, 1 x 8 tokens" in note for note in said.notes)


def test_the_reference_rounds_where_the_file_does(int8, exports):
    """Torch as the scheme says is farther from a file of floats than torch that follows the file."""
    export = exports("int8", "decoded")
    followed, rounded = load_reference(int8, export), load_model(int8).model
    ids = torch.arange(5, 25).reshape(2, 10)
    session = onnxruntime.InferenceSession(export.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    arrays = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found = session.run(["logits"], arrays)[0]
    with torch.inference_mode():
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        near, far = (abs(found - network(**inputs).logits.numpy()).max() for network in (followed, rounded))
    assert near < 1e-5 < 1e-4 < far


def test_the_check_holds_an_export_without_rounding_to_the_exact_limits(int8, exports, tmp_path):
    data, export = pico_data_artifact(tmp_path / "data"), exports("int8", "decoded")
    parity = read_parity(
        edgekit.check(export, edgekit.CheckConfig(rows=16), reference=int8, data=data, out=tmp_path / "parity")
    )
    assert parity.passed
    assert parity.own_max_abs_diff is None, "nothing is rounded, so nothing is relaxed"


def test_onnxruntimes_own_format_takes_no_choice(int8, tmp_path):
    """It is saved with what is computed at load: decoded codes would be floats in the file."""
    with pytest.raises(UnsupportedError, match=r"found a choice for ort .*, expected onnx"):
        export_with(int8, decoded, tmp_path, format="ort")


@pytest.mark.parametrize("table", [{}, {"embeddings": 4, "embeddings_group_size": 32}])
def test_a_decoder_follows_a_choice_and_checks_itself_without_rounding(table, tmp_path):
    floats = publish_model(pico_decoder("llama", layers=1, hidden_size=64, head_dim=16), tmp_path / "floats")
    student = edgekit.quantize(floats, edgekit.QuantizeConfig(bits=4, group_size=32, **table), out=tmp_path / "int4")
    export = export_with(student, decoded, tmp_path)
    operators = {node.op_type for node in onnx.load(export.path / "onnx" / "model.onnx").graph.node}
    assert "MatMulNBits" not in operators
    assert not rounds_activations(student, export)


def refused(kind, message, call):
    with pytest.raises(kind, match=message):
        call()


def test_choices_that_do_not_fit_are_refused_and_nothing_is_written(students, tmp_path):
    int8, out = students["int8"], tmp_path / "out"
    choice = made_up_choice(int8, decoded)

    def export_by(lowering, model=int8, **settings):
        return lambda: edgekit.export(model, edgekit.ExportConfig(**settings), lowering=lowering, out=out)

    whole = publish_choice(choice, tmp_path / "whole")
    refused(
        UsageError,
        r"4 bits in groups of 16.*another model or another scheme",
        export_by(whole, students["4 bits in groups"]),
    )
    shallow = publish_choice(choice.model_copy(update={"linears": choice.linears[1:]}), tmp_path / "part")
    refused(UsageError, r"a choice without '.*query\+key\+value' \(32 -> 96, 8 bits by channel", export_by(shallow))
    wider = choice.linears[0].shape.model_copy(update={"out_features": 999})
    more = [*choice.linears, choice.linears[0].model_copy(update={"shape": wider})]
    refused(
        UsageError,
        "a choice for 32 -> 999, 8 bits by channel, dynamic-int8, which this model does not have",
        export_by(publish_choice(choice.model_copy(update={"linears": more}), tmp_path / "more")),
    )
    refused(
        UnsupportedError,
        "found 'n-bits-int8' for 32 -> 96.*expected dynamic-int8 or decoded",
        export_by(publish_choice(made_up_choice(int8, lambda shape: "n-bits-int8"), tmp_path / "rounded")),
    )
    refused(ArtifactError, "'schema': .*Make it again", export_by(publish_choice(choice, tmp_path / "old", schema=0)))
    unknown = [{**json.loads(choice.linears[0].model_dump_json()), "chosen": "magic"}]
    refused(
        ArtifactError, "chosen.*Make it again", export_by(publish_choice(choice, tmp_path / "odd", linears=unknown))
    )
    refused(ArtifactError, "kind 'model', expected 'lowering'", export_by(int8))
    refused(UnsupportedError, "precision float32", export_by(whole, precision="float32"))
    refused(UnsupportedError, "dialect standard", export_by(whole, dialect="standard"))
    refused(UnsupportedError, "found a choice for openvino", export_by(whole, format="openvino"))
    assert not out.exists()


def test_no_way_rounds_what_its_scheme_does_not():
    for bits in (8, 4, 3, 2):
        for group_size in (None, 32):
            scheme = Scheme(bits=bits, group_size=group_size, activations="float")
            assert not any(name.endswith("int8") for name in possible_lowerings(scheme, "linear"))
