"""OpenVINO's IR: the student's own codes, read back from the file; logits under OpenVINO as torch computes them."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit.errors import EnvironmentLacksError, ModelError, UnsupportedError
from edgekit.exporters.block_rounding import multiply_floats, rounding_in_blocks
from edgekit.exporters.description import read_description
from edgekit.exporters.parity import read_parity
from edgekit.models.quantized import QuantizedModule
from edgekit.models.source import load_model
from edgekit.runtimes.openvino_runtime import OpenVinoRuntime
from edgekit.runtimes.protocol import SessionConfig, model_bytes, model_files, runtime_for
from tests.exporters.test_onnx import SCHEMES
from tests.pico import pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder

openvino = pytest.importorskip("openvino")

IR = edgekit.ExportConfig(format="openvino")


def export(settings, place, config=IR, **options):
    model = pico_model_artifact(place / "model", layers=1, **options)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=place / "student")
    return student, edgekit.export(student, config, out=place / "ir")


def constants(artifact):
    operators = openvino.Core().read_model(artifact.path / "openvino_model.xml").get_ops()
    return {each.get_friendly_name(): each for each in operators if each.get_type_name() == "Constant"}


def values(constant):
    """Returns what OpenVINO itself takes a constant's values for, int32."""
    from openvino import opset13

    graph = openvino.Model([opset13.convert(constant.output(0), "i32")], [])
    (found,) = openvino.Core().compile_model(graph, "CPU")([]).values()
    return found


def logits_of(network, inputs):
    import torch

    with torch.no_grad():
        return network(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()


def batch(seed=0, rows=3, length=11):
    ids = np.random.default_rng(seed).integers(5, 100, size=(rows, length))
    mask = np.tril(np.ones((rows, length), dtype=np.int64), k=8)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_file_holds_every_modules_codes_and_computes_as_torch_does(name, tmp_path):
    student, made = export(SCHEMES[name], tmp_path)
    network = load_model(student).model.eval()
    assert_codes(network, made)
    multiply_floats(network)
    session = OpenVinoRuntime().open(made, SessionConfig())
    for seed, (rows, length) in enumerate([(1, 5), (3, 11), (2, 16)]):
        inputs = batch(seed, rows, length)
        found = session.run(inputs)["logits"]
        floats = logits_of(network, inputs)
        with rounding_in_blocks(network):
            rounded = logits_of(network, inputs)
        if SCHEMES[name].get("activations") == "float":
            np.testing.assert_allclose(found, floats, atol=2e-5)
        else:
            # a plugin without the instructions for it computes with floats
            assert min(np.abs(found - floats).max(), np.abs(found - rounded).max()) < 1e-3


def assert_codes(network, made):
    """Compares the codes of every quantized module with the constants of the file."""
    modules = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedModule)}
    stored, seen = constants(made), set()
    for key in (key for key in stored if key.endswith(".codes")):
        prefix, _, last = key.removesuffix(".codes").rpartition(".")
        names = [f"{prefix}.{part}" for part in last.split("+")]
        wanted = np.concatenate([modules[name].quantized_weight().codes.numpy().astype(np.int16) for name in names])
        np.testing.assert_array_equal(values(stored[key]), wanted, err_msg=key)
        seen.update(names)
    assert seen == set(modules)


@pytest.mark.parametrize(("activations", "group"), [("float", 0), ("dynamic-int8", 32)])
def test_the_file_says_whether_activations_are_rounded(activations, group, tmp_path):
    _, made = export({"bits": 8, "activations": activations}, tmp_path)
    compiled = OpenVinoRuntime().open(made, SessionConfig())._compiled
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == group
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_it_passes_the_check_and_tells_what_it_holds(tmp_path):
    student, made = export({"bits": 8}, tmp_path)
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=16)
    checked = edgekit.check(made, config, reference=student, data=data, out=tmp_path / "parity")
    parity = read_parity(checked)
    assert parity.passed
    assert parity.runtime.startswith("openvino ")
    assert parity.own_max_abs_diff is not None
    description = read_description(made.path)
    assert (description.format, description.file) == ("openvino", "openvino_model.xml")
    assert {file.name for file in model_files(made)} == {"openvino_model.xml", "openvino_model.bin"}
    assert model_bytes(made) == sum(file.stat().st_size for file in model_files(made))
    assert runtime_for(made).name == "openvino"


def test_a_file_that_computes_something_else_fails_the_check(tmp_path):
    _, made = export({"bits": 8}, tmp_path / "a")
    other, _ = export({"bits": 8}, tmp_path / "b", seed=1)
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=16)
    assert not read_parity(edgekit.check(made, config, reference=other, data=data, out=tmp_path / "parity")).passed


def test_equal_models_give_equal_files(tmp_path):
    first, second = (export({"bits": 4, "group_size": 16}, tmp_path / name)[1] for name in "ab")
    for name in ("openvino_model.xml", "openvino_model.bin"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_other_codes_in_the_file_are_noticed(tmp_path, monkeypatch):
    import edgekit.exporters.openvino as exporter

    write = exporter.write_ir

    def write_and_alter(exported, file, **options):
        write(exported, file, **options)
        weights = file.with_suffix(".bin")
        content = bytearray(weights.read_bytes())
        start = next(c for name, c in _offsets(file).items() if name.endswith("dense.codes"))
        content[start] ^= 1
        weights.write_bytes(content)

    monkeypatch.setattr(exporter, "write_ir", write_and_alter)
    with pytest.raises(ModelError, match=r"does not hold the codes '.*dense.codes'. Nothing was exported"):
        export({"bits": 8}, tmp_path)
    assert not (tmp_path / "ir").exists()


def _offsets(file):
    from xml.etree import ElementTree

    stored = [layer for layer in ElementTree.parse(file).getroot().iter("layer") if layer.get("type") == "Const"]
    return {layer.get("name"): int(layer.find("data").get("offset")) for layer in stored}


def test_a_language_model_is_refused_with_the_reason(tmp_path):
    model = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    with pytest.raises(
        UnsupportedError, match=r"found a model for the task 'causal-lm', expected text-classification: "
    ):
        edgekit.export(model, IR, out=tmp_path / "ir")


def test_without_openvino_nothing_is_written_and_the_command_is_told(tmp_path, monkeypatch):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    monkeypatch.setattr(OpenVinoRuntime, "unavailable_reason", lambda self: "it is not installed. Install it: so")
    with pytest.raises(EnvironmentLacksError, match=r"openvino: it is not installed\. Install it: so"):
        edgekit.export(model, IR, out=tmp_path / "ir")
    assert not (tmp_path / "ir").exists()


def test_a_model_that_openvino_writes_and_cannot_run_is_not_exported(tmp_path):
    with pytest.raises(UnsupportedError, match=r"writes this model but cannot run it .*Export it as onnx\."):
        export({"bits": 8}, tmp_path, architecture="deberta-v2")
    assert not (tmp_path / "ir").exists()
