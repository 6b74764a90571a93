"""LiteRT files: the student's own codes, read back from the file; logits under LiteRT as torch computes them."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit.errors import EnvironmentLacksError, ModelError, UnsupportedError, UsageError
from edgekit.exporters import litert
from edgekit.exporters.block_rounding import multiply_floats, rounding_in_rows
from edgekit.exporters.description import read_description
from edgekit.exporters.litert import signature_lengths
from edgekit.exporters.litert_codes import CodedWeight, _common, _pack, _scaled, _unpack, read_codes, require_codes
from edgekit.exporters.parity import read_parity
from edgekit.models.quantized import QuantizedLinear, QuantizedModule
from edgekit.models.source import load_model
from edgekit.runtimes.litert_runtime import LiteRTRuntime
from edgekit.runtimes.protocol import SessionConfig, model_bytes, model_file, runtime_for
from tests.pico import ARCHITECTURES, pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder

pytest.importorskip("litert_torch")

SHORT = edgekit.ExportConfig(format="litert", lengths=[8, 16])
SCHEMES = {
    "int8": {"bits": 8},
    "int8, float table": {"bits": 8, "embeddings": None},
    "int8, float activations": {"bits": 8, "activations": "float"},
    "int4, float activations": {"bits": 4, "group_size": None, "activations": "float"},
}


def export(settings, place, config=SHORT, **options):
    model = pico_model_artifact(place / "model", layers=1, **options)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=place / "student")
    return student, edgekit.export(student, config, out=place / "litert")


def logits_of(network, inputs):
    import torch

    with torch.no_grad():
        return network(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()


def batch(seed=0, rows=3, length=11):
    ids = np.random.default_rng(seed).integers(5, 100, size=(rows, length))
    mask = np.tril(np.ones((rows, length), dtype=np.int64), k=length - rows)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": ids * 0}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_file_holds_every_linears_codes_and_computes_as_torch_does(name, tmp_path):
    student, made = export(SCHEMES[name], tmp_path)
    network = load_model(student).model.eval()
    assert_codes(network, made)
    rounding = multiply_floats(network)
    session = LiteRTRuntime().open(made, SessionConfig())
    for seed, (rows, length) in enumerate([(1, 5), (3, 11), (2, 16)]):
        inputs = batch(seed, rows, length)
        found, floats = session.run(inputs)["logits"], logits_of(network, inputs)
        with rounding_in_rows(rounding):
            rounded = logits_of(network, inputs)
        if SCHEMES[name].get("activations") == "float":
            np.testing.assert_allclose(found, floats, atol=2e-5)
        else:
            assert np.abs(found - floats).max() < 5 * np.abs(rounded - floats).max() + 1e-4


def assert_codes(network, made):
    """Compares the codes of every linear with the constants of the file, and their scales up to one factor."""
    stored = list(read_codes(model_file(made)))
    named = json.loads((made.path / "export.json").read_text())["coded_weights"]
    modules = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedModule)}
    for name, module in modules.items():
        weight = module.quantized_weight()
        held = [scales for codes, scales in stored if np.array_equal(codes, weight.codes.numpy())]
        assert (name in named) == bool(held), name
        assert held or name.endswith("position_embeddings"), name  # looked up by the converter
        for scales in held:
            ratio = scales / weight.scales.float().numpy()[:, 0]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5, err_msg=name)
    assert set(named) <= set(modules)


def test_a_linear_that_the_converter_changed_is_refused_by_its_name(tmp_path):
    with pytest.raises(UnsupportedError, match=r"did not keep the weight of 'model\.layers\.0"):
        export({"bits": 8}, tmp_path, architecture="modernbert")


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "modernbert"])
def test_every_architecture_keeps_its_codes(architecture, tmp_path):
    student, made = export({"bits": 8}, tmp_path, architecture=architecture)
    network = load_model(student).model.eval()
    named = json.loads((made.path / "export.json").read_text())["coded_weights"]
    linears = [name for name, module in network.named_modules() if isinstance(module, QuantizedLinear)]
    assert set(linears) <= set(named)
    rounding = multiply_floats(network)
    session = LiteRTRuntime().open(made, SessionConfig())
    given = {name: value for name, value in batch().items() if name in session.input_names}
    found, floats = session.run(given)["logits"], logits_of(network, given)
    with rounding_in_rows(rounding):
        rounded = logits_of(network, given)
    assert np.abs(found - floats).max() < 5 * np.abs(rounded - floats).max() + 1e-4


def test_a_position_table_that_is_used_whole_keeps_its_codes(tmp_path):
    loaded = load_model(pico_model_artifact(tmp_path / "plain", layers=1))
    positions = loaded.model.config.max_position_embeddings
    loaded.task = loaded.task.model_copy(update={"max_length": positions})
    model = publish_model(loaded, tmp_path / "model")
    student = edgekit.quantize(model, edgekit.QuantizeConfig(bits=8), out=tmp_path / "student")
    made = edgekit.export(student, SHORT, out=tmp_path / "litert")
    network = load_model(student).model.eval()
    rounding = multiply_floats(network)
    inputs = batch(0, 2, positions)
    found = LiteRTRuntime().open(made, SessionConfig()).run(inputs)["logits"]
    floats = logits_of(network, inputs)
    with rounding_in_rows(rounding):
        rounded = logits_of(network, inputs)
    assert np.abs(found - floats).max() < 5 * np.abs(rounded - floats).max() + 1e-4


def test_codes_are_found_by_their_floats_whatever_a_row_was_multiplied_by():
    generator = np.random.default_rng(0)
    codes = generator.integers(-127, 128, (6, 32)).astype(np.int8)
    codes[2] = 0
    scales = np.array([0.5, -0.25, 1, 2, 0.125, 3], dtype=np.float32)
    weight = CodedWeight(codes, scales, 8, is_linear=True, rounds_activations=True)
    floats = codes.astype(np.float32) * scales[:, None]
    assert np.array_equal(_scaled(floats, weight).scales, scales), "to the bit, where nothing was multiplied"
    factors = generator.uniform(0.1, 3, (6, 1)).astype(np.float32)
    found = _scaled(floats * factors, weight)
    assert found is not None
    np.testing.assert_allclose(np.delete(found.scales, 2), np.delete(scales * factors[:, 0], 2), rtol=1e-6)
    columns = floats * generator.uniform(0.1, 3, (1, 32)).astype(np.float32)
    other = floats.copy()
    other[4, 7] += 0.125
    for changed in (columns, other, np.zeros_like(floats), floats[::-1]):
        assert _scaled(np.ascontiguousarray(changed), weight) is None


def test_modules_that_share_a_weight_must_be_quantized_alike():
    codes, scales = np.ones((2, 4), dtype=np.int8), np.ones(2, dtype=np.float32)
    rounded = CodedWeight(codes, scales, 8, is_linear=True, rounds_activations=True)
    floats = CodedWeight(codes, scales, 8, is_linear=True, rounds_activations=False)
    assert _common({"a": rounded, "b": rounded}) is rounded
    with pytest.raises(UnsupportedError, match="'a' and 'b' share their weight and are quantized in different ways"):
        _common({"a": rounded, "b": floats})


def test_a_norms_gain_is_not_multiplied_into_the_codes_of_the_linear_that_follows(tmp_path):
    import torch

    loaded = load_model(pico_model_artifact(tmp_path / "plain", layers=1))
    generator = torch.Generator().manual_seed(0)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.bias.shape, generator=generator))
    model = publish_model(loaded, tmp_path / "model")
    student = edgekit.quantize(model, edgekit.QuantizeConfig(bits=8), out=tmp_path / "student")
    made = edgekit.export(student, SHORT, out=tmp_path / "litert")
    network = load_model(student).model.eval()
    assert_codes(network, made)
    multiply_floats(network)
    found = LiteRTRuntime().open(made, SessionConfig()).run(batch())["logits"]
    np.testing.assert_allclose(found, logits_of(network, batch()), atol=0.02)


def test_a_float_file_is_torch_to_the_last_digits(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=2)
    made = edgekit.export(model, SHORT, out=tmp_path / "litert")
    network = load_model(model).model.eval()
    for threads in (1, 2):
        session = LiteRTRuntime().open(made, SessionConfig(threads=threads))
        assert session.input_names == ["input_ids", "attention_mask", "token_type_ids"]
        assert session.lengths == [8, 16, load_model(model).task.max_length]
        for length in (1, 8, 9, 16):
            inputs = batch(length, 1, length)
            np.testing.assert_allclose(session.run(inputs)["logits"], logits_of(network, inputs), atol=2e-5)
    longest = load_model(model).task.max_length
    with pytest.raises(UsageError, match=f"found {longest + 1} tokens, expected at most {longest}"):
        session.run(batch(0, 1, longest + 1))


def test_it_passes_the_check_and_tells_what_it_holds(tmp_path):
    config = edgekit.ExportConfig(format="litert")
    student, made = export({"bits": 8}, tmp_path, config)
    data = pico_data_artifact(tmp_path / "data")
    checked = edgekit.check(made, edgekit.CheckConfig(rows=16), reference=student, data=data, out=tmp_path / "parity")
    parity = read_parity(checked)
    assert parity.passed
    assert parity.runtime.startswith("litert ")
    assert parity.own_max_abs_diff is not None
    description = read_description(made.path)
    assert (description.format, description.file) == ("litert", "model.tflite")
    assert "padded to the next of 16, 32" in description.notes[0]
    assert model_bytes(made) == model_file(made).stat().st_size
    assert runtime_for(made).name == "litert"


def test_a_file_that_computes_something_else_fails_the_check(tmp_path):
    _, made = export({"bits": 8}, tmp_path / "a")
    other, _ = export({"bits": 8}, tmp_path / "b", seed=1)
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=8)
    checked = edgekit.check(made, config, reference=other, data=data, out=tmp_path / "parity")
    assert not read_parity(checked).passed


def test_other_codes_in_the_file_are_found(tmp_path):
    student, made = export({"bits": 8}, tmp_path)
    codes = litert.coded_weights(load_model(student).model)
    linear = {name: weight for name, weight in codes.items() if weight.is_linear and "intermediate" in name}
    require_codes(model_file(made), linear)
    content = model_file(made).read_bytes()
    name, weight = next(iter(linear.items()))
    place = content.find(weight.codes.tobytes())
    (tmp_path / "other.tflite").write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(ModelError, match=f"does not hold the codes of '{name}'"):
        require_codes(tmp_path / "other.tflite", linear)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"bits": 8, "symmetric": False},
            "litert has no kernel for 8-bit asymmetric codes; expected symmetric ones of 8",
        ),
        ({"bits": 4, "group_size": 16}, "no kernel for 4-bit symmetric codes in groups of 16"),
        (
            {"bits": 8, "embeddings": 4, "embeddings_group_size": 32},
            "no kernel for 4-bit symmetric codes in groups of 32",
        ),
    ],
)
def test_what_litert_has_no_kernel_for_is_refused_by_name(settings, complaint, tmp_path):
    with pytest.raises(UnsupportedError, match=complaint) as caught:
        export(settings, tmp_path)
    assert "module '" in str(caught.value)
    assert not (tmp_path / "litert").exists()


def test_other_models_and_lengths_are_refused(tmp_path):
    model = publish_model(pico_decoder("llama"), tmp_path / "decoder")
    with pytest.raises(UnsupportedError, match="litert: found a model for the task 'causal-lm'"):
        edgekit.export(model, edgekit.ExportConfig(format="litert"), out=tmp_path / "out")
    classifier = pico_model_artifact(tmp_path / "model", layers=1)
    with pytest.raises(UnsupportedError, match="lengths: found 4096, expected at most"):
        edgekit.export(classifier, edgekit.ExportConfig(format="litert", lengths=[8, 4096]), out=tmp_path / "out")
    with pytest.raises(UnsupportedError, match="precision: found float16"):
        edgekit.export(classifier, edgekit.ExportConfig(format="litert", precision="float16"), out=tmp_path / "out")


def test_a_missing_package_and_a_broken_file_are_clear_errors(tmp_path, monkeypatch):
    _, made = export({"bits": 8}, tmp_path)
    model_file(made).write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.tflite: LiteRT cannot open it .*Export it again"):
        LiteRTRuntime().open(made, SessionConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacksError, match=r"'litert-torch' is not installed. .*\.\[litert\]"):
        litert.require_converter()
    assert "ai-edge-litert" in LiteRTRuntime().unavailable_reason()


@given(st.integers(1, 600))
def test_lengths_are_powers_of_two_and_end_with_the_longest(longest):
    lengths = signature_lengths(longest, None)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == longest
    assert all(length % 16 == 0 for length in lengths[:-1])
    assert all(later <= 2 * former for former, later in pairwise(lengths))


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=33))
def test_4_bit_codes_are_packed_two_a_byte(codes):
    array = np.array(codes, dtype=np.int8)
    assert _unpack(_pack(array), len(array)).tolist() == codes
    assert len(_pack(array)) == (len(array) + 1) // 2
