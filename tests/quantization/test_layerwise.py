"""Layer by layer: inputs against a plain run, every pico decoder by both algorithms, and who is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.codes import Scheme
from edgekit.models.layer_run import start_run
from edgekit.models.quantized import QuantizedLinear, schemes_of
from edgekit.quantization import layerwise
from edgekit.quantization.calibration import observe
from edgekit.quantization.layerwise import LayerwiseConfig, linears_in_layers, quantize_layers
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.quantization.scheme import Rules, choose_schemes
from tests.pico import pico_loaded
from tests.pico_decoders import DECODERS, pico_decoder

SCHEME = Scheme(bits=3, group_size=16, activations="float")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches(padding: int = 5):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 290, (6, 24), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 24 - padding :] = 0
    return [(ids[:4], mask[:4]), (ids[4:], mask[4:])]


def schemes_in_layers(model):
    return linears_in_layers(model, choose_schemes(model, Rules(linears=SCHEME, embeddings=None), labels=2))


def outputs(model, given):
    ids, mask = given
    with torch.no_grad():
        return model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


def test_the_inputs_of_a_linear_are_those_of_a_plain_run_without_padding():
    model = pico_decoder("llama").model
    run = start_run(model, batches())
    run.advance(0)
    found = {
        entry.names[0]: entry for entry in observe(run, 1, ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
    }
    assert found["self_attn.q_proj"].names == ["self_attn.q_proj", "self_attn.k_proj"]
    assert found["self_attn.q_proj"].source == "input_layernorm"
    assert found["mlp.down_proj"].source is None
    seen = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for ids, mask in batches():
        outputs(model, (ids, mask))
    handle.remove()
    rows = torch.cat([inputs[mask.bool()] for inputs, (_, mask) in zip(seen, batches(), strict=True)]).double()
    torch.testing.assert_close(found["mlp.down_proj"].hessian, rows.T @ rows, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["mlp.down_proj"].magnitude, rows.abs().sum(dim=0), rtol=1e-4, atol=1e-6)
    assert found["mlp.down_proj"].tokens == len(rows) == 6 * 24 - 5


@pytest.mark.parametrize("architecture", DECODERS)
def test_the_run_by_layers_is_the_model_itself(architecture):
    """Sliding windows and layers without rotary embedding are called differently, and must be."""
    model = pico_decoder(architecture).model
    run = start_run(model, batches())
    last = len(run.stack.layers) - 1
    seen = []
    handle = run.stack.layers[last].register_forward_hook(lambda module, args, output: seen.append(output))
    outputs(model, batches()[0])
    handle.remove()
    for index in range(len(run.stack.layers)):
        run.advance(index)
    wanted = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(run.hidden[0], wanted)


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
@pytest.mark.parametrize("architecture", [name for name in DECODERS if name != "olmo2"])
def test_every_decoder_keeps_more_than_by_rounding(architecture, algorithm):
    model = pico_decoder(architecture).model
    given, schemes = batches(), schemes_in_layers(model)
    wanted = [outputs(model, batch) for batch in given]
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name, scheme in schemes.items():
            weight = rounded.get_submodule(name).weight
            transposed = type(rounded.get_submodule(name)).__name__ == "Conv1D"
            coded = quantize_tensor(weight.T if transposed else weight, scheme, "range").dequantize()
            weight.copy_(coded.T if transposed else coded)
    assert len(list(quantize_layers(model, schemes, given, LayerwiseConfig(algorithm)))) == 4
    assert schemes_of(model) == schemes

    def error(network):
        pairs = zip(given, wanted, strict=True)
        return sum(float((outputs(network, batch) - target).square().sum()) for batch, target in pairs)

    assert error(model) < error(rounded)


def test_gptq_works_on_an_encoder():
    loaded = pico_loaded(layers=2)
    ids = torch.randint(6, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    given = [(ids, torch.ones_like(ids))]
    schemes = schemes_in_layers(loaded.model)
    list(quantize_layers(loaded.model, schemes, given, LayerwiseConfig("gptq")))
    assert schemes_of(loaded.model) == schemes


def test_linears_left_float_are_scaled_with_the_others():
    """Query is excluded; it reads the norm that scales are folded into all the same."""
    model = pico_decoder("llama").model
    exact = copy.deepcopy(model)
    schemes = {name: scheme for name, scheme in schemes_in_layers(model).items() if name.endswith("v_proj")}
    list(quantize_layers(model, schemes, batches(), LayerwiseConfig("awq")))
    moved = False
    for layer, before in zip(model.model.layers, exact.model.layers, strict=True):
        assert isinstance(layer.self_attn.v_proj, QuantizedLinear)
        scales = before.input_layernorm.weight / layer.input_layernorm.weight
        moved |= bool((scales - 1).abs().max() > 1e-3)
        torch.testing.assert_close(layer.self_attn.q_proj.weight, before.self_attn.q_proj.weight * scales)
    assert moved


@pytest.mark.parametrize("architecture", [name for name in DECODERS if name != "olmo2"])
def test_folding_keeps_the_float_model_s_function(architecture, monkeypatch):
    """With codes left out, AWQ's model is the float one but for float32 rounding."""
    model = pico_decoder(architecture).model
    given = batches()
    wanted = outputs(model, given[0])
    monkeypatch.setattr(layerwise, "put_codes", lambda *args: None)
    list(quantize_layers(model, schemes_in_layers(model), given, LayerwiseConfig("awq")))
    found = outputs(model, given[0])
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_norms_that_scales_cannot_be_folded_into_are_refused():
    model = pico_decoder("olmo2").model
    with pytest.raises(UnsupportedError, match=r"Olmo2DecoderLayer.*found no norm whose output goes into linears"):
        list(quantize_layers(model, schemes_in_layers(model), batches(), LayerwiseConfig("awq")))
    bert = pico_loaded(layers=2).model
    ids = torch.randint(6, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    with pytest.raises(UnsupportedError, match="something else than linears reads them"):
        list(quantize_layers(bert, schemes_in_layers(bert), [(ids, torch.ones_like(ids))], LayerwiseConfig("awq")))


def test_a_layer_applied_again_and_again_is_refused():
    albert = pico_loaded(architecture="albert", layers=2).model
    ids = torch.randint(6, 60, (2, 8))
    with pytest.raises(UnsupportedError, match="applies one layer 2 times"):
        list(quantize_layers(albert, {}, [(ids, torch.ones_like(ids))], LayerwiseConfig("gptq")))


def test_text_without_a_token_is_refused():
    model = pico_decoder("llama").model
    ids, mask = batches()[0]
    with pytest.raises(UsageError, match="found no token"):
        list(quantize_layers(model, {}, [(ids, mask * 0)], LayerwiseConfig("gptq")))
