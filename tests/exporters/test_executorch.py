"""ExecuTorch files: the student's own codes in XNNPACK's hands; logits under ExecuTorch as torch computes them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import edgekit
from edgekit.errors import EnvironmentLacksError, ModelError, UnsupportedError
from edgekit.exporters import executorch, executorch_needs
from edgekit.exporters.block_rounding import multiply_floats, rounding_in_rows
from edgekit.exporters.description import read_description
from edgekit.exporters.executorch_codes import coded_weights, read_weights, require_codes
from edgekit.exporters.executorch_lowering import lower_codes
from edgekit.exporters.onnx import input_names
from edgekit.exporters.parity import read_parity
from edgekit.models.source import load_model
from edgekit.runtimes.executorch_runtime import ExecuTorchRuntime
from edgekit.runtimes.protocol import SessionConfig, model_bytes, model_file, runtime_for
from edgekit.runtimes.silence import silent_library
from tests.pico import ARCHITECTURES, MAX_LENGTH, pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder

pytest.importorskip("executorch")

CONFIG = edgekit.ExportConfig(format="executorch")
INT4 = {"bits": 4, "group_size": 32, "narrow_scales": True}


def quantized(settings, place, **options):
    model = pico_model_artifact(place / "model", layers=options.pop("layers", 1), **options)
    return edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=place / "student")


def export(settings, place, **options):
    student = quantized(settings, place, **options)
    return student, edgekit.export(student, CONFIG, out=place / "executorch")


@pytest.fixture(scope="module", params=[{"bits": 8}, INT4], ids=["int8", "int4"])
def exported(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    student, made = export(request.param, place)
    return SimpleNamespace(student=student, made=made, place=place)


def logits_of(network, inputs):
    import torch

    with torch.no_grad():
        return network(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()


def batch(seed=0, rows=3, length=11):
    ids = np.random.default_rng(seed).integers(5, 100, size=(rows, length))
    mask = np.tril(np.ones((rows, length), dtype=np.int64), k=length - rows)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": ids * 0}


def assert_computes_what_torch_does(student, made):
    """Compares with torch that rounds each row of a linear's input; a value between two codes may fall on either."""
    network = load_model(student).model.eval()
    rounding = multiply_floats(network)
    session = ExecuTorchRuntime().open(made, SessionConfig())
    apart, own = [], []
    for seed, (rows, length) in enumerate([(1, 1), (1, 5), (3, 11), (2, 16), (2, MAX_LENGTH)]):
        inputs = {name: value for name, value in batch(seed, rows, length).items() if name in session.input_names}
        found, floats = session.run(inputs)["logits"], logits_of(network, inputs)
        with rounding_in_rows(rounding):
            rounded = logits_of(network, inputs)
        apart.append(np.abs(found - rounded).ravel())
        own.append(np.abs(rounded - floats).ravel())
    assert np.median(np.concatenate(apart)) < 2e-6
    assert np.concatenate(apart).max() < 2 * np.concatenate(own).max()
    assert np.median(np.concatenate(own)) > 1e-4, "rounding is not seen"


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
def test_every_architecture_computes_what_torch_does(architecture, tmp_path):
    student, made = export({"bits": 8}, tmp_path, architecture=architecture, layers=2 if "v2" in architecture else 1)
    assert_computes_what_torch_does(student, made)


def test_local_and_global_attention_compute_what_torch_does(tmp_path):
    assert_computes_what_torch_does(*export({"bits": 8}, tmp_path, architecture="modernbert", layers=2))


def test_the_file_holds_the_codes_and_computes_what_torch_does(exported):
    assert_computes_what_torch_does(exported.student, exported.made)
    weights = coded_weights(load_model(exported.student).model)
    content = model_file(exported.made).read_bytes()
    require_codes(content, weights)
    linears = {(weight.codes, weight.scales) for weight in weights.values() if weight.is_linear}
    assert read_weights(content).products == linears


@pytest.mark.parametrize("part", ["codes", "scales"])
@pytest.mark.parametrize("module", ["intermediate.dense", "word_embeddings"])
def test_one_other_code_or_scale_in_the_file_is_found(module, part, exported):
    weights = coded_weights(load_model(exported.student).model)
    name, weight = next((name, weight) for name, weight in weights.items() if name.endswith(module))
    content = model_file(exported.made).read_bytes()
    stored = getattr(weight, part)
    place = content.find(stored) + len(stored) // 2
    assert content.count(stored) == 1
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    require_codes(content, {name: weight})
    with pytest.raises(ModelError, match=f"does not hold the codes of '{name}'"):
        require_codes(changed, {name: weight})


def test_what_stands_after_a_text_changes_nothing(exported):
    session = ExecuTorchRuntime().open(exported.made, SessionConfig())
    inputs = batch(0, 1, 6)
    alone = session.run(inputs)["logits"]
    generator = np.random.default_rng(1)
    for length in (7, 16, MAX_LENGTH):
        padded = {name: np.pad(value, ((0, 0), (0, length - 6))) for name, value in inputs.items()}
        padded["input_ids"][:, 6:] = generator.integers(5, 100, size=length - 6)
        np.testing.assert_allclose(session.run(padded)["logits"], alone, atol=1e-6)


def test_a_batch_is_its_texts_one_by_one(exported):
    session = ExecuTorchRuntime().open(exported.made, SessionConfig())
    inputs = batch(0, 4, 9)
    apart = [session.run({name: value[row : row + 1] for name, value in inputs.items()})["logits"] for row in range(4)]
    assert np.array_equal(session.run(inputs)["logits"], np.concatenate(apart))


def test_it_passes_the_check_and_tells_what_it_holds(exported, tmp_path):
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=16)
    checked = edgekit.check(exported.made, config, reference=exported.student, data=data, out=tmp_path / "parity")
    parity = read_parity(checked)
    assert parity.passed
    assert parity.runtime.startswith("executorch ")
    assert parity.own_max_abs_diff is not None
    description = read_description(exported.made.path)
    assert (description.format, description.file) == ("executorch", "model.pte")
    assert f"of 1 to {MAX_LENGTH} tokens" in description.notes[0]
    assert model_bytes(exported.made) == model_file(exported.made).stat().st_size
    assert runtime_for(exported.made).name == "executorch"
    other = quantized({"bits": 8}, tmp_path, seed=1)
    checked = edgekit.check(exported.made, config, reference=other, data=data, out=tmp_path / "other")
    assert not read_parity(checked).passed


def test_a_float_file_is_torch_to_the_last_digits_and_larger(exported, tmp_path):
    made = edgekit.export(
        exported.student, edgekit.ExportConfig(format="executorch", precision="float32"), out=tmp_path / "float"
    )
    network = load_model(exported.student).model.eval()
    multiply_floats(network)
    session = ExecuTorchRuntime().open(made, SessionConfig())
    for length in (1, 8, 17):
        inputs = batch(length, 1, length)
        np.testing.assert_allclose(session.run(inputs)["logits"], logits_of(network, inputs), atol=2e-5)
    assert model_bytes(made) > 1.3 * model_bytes(exported.made)


def test_a_linear_that_xnnpack_did_not_take_is_refused_by_its_name(tmp_path):
    loaded = load_model(quantized({"bits": 8}, tmp_path))
    names = input_names(loaded)
    lower_codes(loaded.model)
    network = executorch.Logits(loaded.model, names).eval()
    with silent_library():
        executorch.require_delegated(executorch.lower(network, names, MAX_LENGTH, delegate=True))
        left = executorch.lower(network, names, MAX_LENGTH, delegate=False)
    with pytest.raises(UnsupportedError, match=r"XNNPACK did not take the linear 'bert\.encoder\.layer\.0\.attention"):
        executorch.require_delegated(left)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"bits": 8, "symmetric": False}, "executorch has no kernel for 8-bit asymmetric codes; expected symmetric"),
        ({"bits": 8, "activations": "float"}, "no kernel for 8-bit symmetric codes with float activations"),
        ({"bits": 8, "group_size": 32}, "no kernel for 8-bit symmetric codes in groups of 32"),
        ({"bits": 4, "group_size": 32}, "codes in groups of 32 with wide scales; .* narrow_scales = true"),
        ({"bits": 4, "group_size": 16, "narrow_scales": True}, "no kernel for 4-bit symmetric codes in groups of 16"),
        ({"bits": 8, "embeddings": 4, "embeddings_group_size": 32}, "_embeddings': .* of 8 bits with one scale a row"),
    ],
)
def test_what_executorch_has_no_kernel_for_is_refused_by_name(settings, complaint, tmp_path):
    with pytest.raises(UnsupportedError, match=complaint) as caught:
        export(settings, tmp_path)
    assert "module '" in str(caught.value)
    assert not (tmp_path / "executorch").exists()


def test_rows_that_are_no_whole_groups_are_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedError, match=r"'electra\.embeddings_project': .* rows of 16 codes in groups of 32"):
        export(INT4, tmp_path, architecture="electra")


def test_other_models_precisions_and_lengths_are_refused(tmp_path):
    model = publish_model(pico_decoder("llama"), tmp_path / "decoder")
    with pytest.raises(UnsupportedError, match="executorch: found a model for the task 'causal-lm'"):
        edgekit.export(model, CONFIG, out=tmp_path / "out")
    classifier = pico_model_artifact(tmp_path / "model", layers=1)
    with pytest.raises(UnsupportedError, match="precision: found float16"):
        edgekit.export(classifier, CONFIG.model_copy(update={"precision": "float16"}), out=tmp_path / "out")
    with pytest.raises(UnsupportedError, match="executorch: lengths: found \\[8\\], expected none"):
        edgekit.export(classifier, CONFIG.model_copy(update={"lengths": [8]}), out=tmp_path / "out")


def test_a_missing_package_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacksError, match=r"'executorch' is not installed. .*\.\[executorch\]"):
        executorch_needs.require_converter()
    assert "'executorch' is not installed" in ExecuTorchRuntime().unavailable_reason()
