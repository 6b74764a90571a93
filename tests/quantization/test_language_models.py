"""The stage `quantize` on decoders: tied weights stored once, saved and loaded as they were, calibrated on data."""

from __future__ import annotations

import pytest
import torch

from edgekit.contract import StageContext, StageInputs
from edgekit.errors import DataError, UsageError
from edgekit.models.codes import Scheme
from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, schemes_of, shared_sources
from edgekit.models.source import load_model
from edgekit.models.weights import count_parameters, weight_bytes
from edgekit.quantization.layerwise import linears_in_layers
from edgekit.quantization.replacement import put_codes
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.quantization.scheme import Rules, choose_schemes
from edgekit.quantization.stage import QuantizeConfig, quantize
from tests.pico import pico_data_artifact, publish_model
from tests.pico_decoders import DECODERS, pico_decoder

FLOAT = {"activations": "float", "group_size": 16}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return publish_model(pico_decoder("llama"), tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pico_data_artifact(tmp_path_factory.mktemp("data"))


def run(model, out, data=None, **settings):
    events = []
    context = StageContext(out, events=events.append)
    return quantize(StageInputs(model=model, data=data), QuantizeConfig(**settings), context), events


def logits(artifact):
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        return load_model(artifact).model(input_ids=ids).logits


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_tied_table_and_head_share_one_matrix_of_codes(architecture, tmp_path):
    model = publish_model(pico_decoder(architecture), tmp_path / "model")
    quantized, _ = run(model, tmp_path / "out", bits=4, **FLOAT, embeddings=4, embeddings_group_size=16)
    network = load_model(quantized).model
    table, head = network.get_input_embeddings(), network.get_output_embeddings()
    assert isinstance(table, QuantizedEmbedding)
    assert isinstance(head, QuantizedLinear)
    assert table.weight_codes is head.weight_codes
    assert table.scheme.bits == head.scheme.bits == 4
    assert count_parameters(quantized) == count_parameters(model)
    codes = sum(module.weight_codes.numel() for module in network.modules() if hasattr(module, "weight_codes"))
    assert weight_bytes(quantized) < weight_bytes(model) - 3 * codes
    before, after = logits(model), logits(quantized)
    assert 0 < float((before - after).abs().mean()) < 0.4 * float(before.abs().mean())


def test_only_a_tied_head_shares_codes_once_layers_are_quantized():
    model = pico_decoder("llama").model
    scheme = Scheme(bits=4, group_size=16, activations="float")
    schemes = choose_schemes(model, Rules(linears=scheme, embeddings=scheme, head=scheme), labels=0)
    expected = {"lm_head": "model.embed_tokens"}
    assert shared_sources(model, schemes) == expected
    for name in linears_in_layers(model, schemes):
        put_codes(model, name, quantize_tensor(model.get_submodule(name).weight, scheme))
    assert shared_sources(model, schemes) == expected


def test_an_untied_head_has_a_scheme_of_its_own(tmp_path):
    model = publish_model(pico_decoder("llama", tied=False), tmp_path / "model")
    quantized, _ = run(model, tmp_path / "out", bits=4, **FLOAT, head=4, head_group_size=32)
    schemes = schemes_of(load_model(quantized).model)
    assert (schemes["lm_head"].bits, schemes["lm_head"].group_size) == (4, 32)
    assert (schemes["model.embed_tokens"].bits, schemes["model.embed_tokens"].group_size) == (8, None)
    floating, _ = run(model, tmp_path / "float", bits=4, **FLOAT, head=None)
    assert "lm_head" not in schemes_of(load_model(floating).model)


def test_without_a_coded_table_a_tied_head_stays_float_and_tied(llama, tmp_path):
    quantized, _ = run(llama, tmp_path / "out", bits=4, **FLOAT, embeddings=None)
    network = load_model(quantized).model
    assert network.lm_head.weight is network.model.embed_tokens.weight


@pytest.mark.parametrize("algorithm", ["round-to-nearest", "hqq", "gptq", "awq"])
@pytest.mark.parametrize("bits", [3, 2])
def test_codes_come_back_from_the_file_as_they_were(llama, data, tmp_path, algorithm, bits):
    settings = {"bits": bits, "symmetric": bits == 3, "algorithm": algorithm, "calibration_rows": 8, **FLOAT}
    quantized, events = run(llama, tmp_path / "out", data, **settings)
    again, _ = run(llama, tmp_path / "again", data, **settings)
    first, second = load_model(quantized).model, load_model(again).model
    assert {scheme.bits for scheme in schemes_of(first).values()} == {bits, 8}
    for name in schemes_of(first):
        one, other = first.get_submodule(name).quantized_weight(), second.get_submodule(name).quantized_weight()
        assert torch.equal(one.codes, other.codes)
        assert one.scales.dtype == torch.float16
    assert torch.equal(logits(quantized), logits(again))
    if algorithm in ("gptq", "awq"):
        assert any(event.unit == "layers" and event.completed == event.total == 4 for event in events)


def test_calibration_needs_data_and_a_split_that_exists(llama, data, tmp_path):
    settings = {"bits": 4, "algorithm": "gptq", **FLOAT}
    with pytest.raises(UsageError, match="algorithm = 'gptq': needs a data artifact"):
        run(llama, tmp_path / "out", **settings)
    with pytest.raises(DataError, match=r"no split 'trian'\. Did you mean 'train'"):
        run(llama, tmp_path / "out", data, calibration_split="trian", **settings)
    assert not (tmp_path / "out").exists()


def test_decoded_weights_are_kept_until_the_codes_change(llama, tmp_path):
    quantized, _ = run(llama, tmp_path / "out", bits=4, **FLOAT)
    linear = load_model(quantized).model.model.layers[0].mlp.up_proj
    inputs = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    before = linear(inputs)
    assert linear._decoded is not None
    kept = linear._decoded[1]
    assert torch.equal(linear(inputs), before)
    assert linear._decoded[1] is kept
    with torch.no_grad():
        linear.weight_scales.mul_(2)
    torch.testing.assert_close(linear(inputs), 2 * before)
    other = linear.quantized_weight()
    linear.set_weight(type(other)(other.codes, other.scales * 2, None, other.scheme))
    torch.testing.assert_close(linear(inputs), 4 * before)
    linear.train()
    assert linear._decoded is None
