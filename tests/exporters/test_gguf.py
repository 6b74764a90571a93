from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import ModelError, UnsupportedError
from edgekit.exporters.gguf import check_file, export_gguf
from edgekit.exporters.stage import ExportConfig, export
from edgekit.models.gguf_source import load_gguf
from edgekit.models.quantized import QuantizedEmbedding, Scheme, replace_module
from edgekit.quantization.round_to_nearest import quantize_tensor
from tests.coded_decoders import code_linears
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import DECODERS, pico_decoder

WRITTEN = tuple(name for name in DECODERS if name != "opt")
WIDE = {"hidden_size": 64, "intermediate_size": 128}
SCHEMES = {
    "Q8_0": Scheme(bits=8, group_size=32, activations="float"),
    "Q4_0": Scheme(bits=4, group_size=64, activations="float"),
    "Q4_1": Scheme(bits=4, group_size=32, symmetric=False, activations="float"),
}


def tensors_of(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", [*WRITTEN, "qwen2"])
def test_a_float_model_comes_back_with_the_same_weights_and_logits(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    loaded = pico_decoder(architecture, tied=tied)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={"version": "1"})
    back = load_gguf(tmp_path / "model.gguf")
    weights, found = loaded.model.state_dict(), back.network.state_dict()
    assert set(weights) == set(found)
    for name, weight in weights.items():
        # Gemma's norms are stored with one added, which rounds weights near zero.
        is_moved = architecture == "gemma3_text" and name.endswith("norm.weight")
        assert torch.allclose(found[name], weight, rtol=0, atol=1e-7 if is_moved else 0), name
    ids = torch.arange(4, 84)[None]
    with torch.inference_mode():
        difference = back.network(ids).logits - loaded.model(ids).logits
    assert difference.abs().max() <= (1e-5 if architecture == "gemma3_text" else 0)


def test_equal_models_give_equal_bytes_and_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_gguf(pico_decoder(), tmp_path / name, lineage={"model_digest": "abc", "version": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    fields = GGUFReader(tmp_path / "a").fields
    assert fields["edgekit.model_digest"].contents() == "abc"
    assert fields["tokenizer.chat_template"].contents() == pico_decoder().tokenizer.chat_template


def test_a_tied_head_is_stored_once_and_one_of_its_own_where_llama_cpp_asks_for_it(tmp_path: Path) -> None:
    for architecture, tied, expected in (("llama", True, False), ("llama", False, True), ("olmo2", True, True)):
        file = tmp_path / f"{architecture}-{tied}"
        export_gguf(pico_decoder(architecture, tied=tied), file, lineage={})
        assert ("output.weight" in tensors_of(file)) == expected


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("architecture", WRITTEN)
def test_codes_are_kept_bit_for_bit(tmp_path: Path, architecture: str, kind: str) -> None:
    sizes = {"n_embd": 64, "n_inner": 128} if architecture == "gpt2" else WIDE
    loaded = pico_decoder(architecture, layers=1, **sizes)
    code_linears(loaded, SCHEMES[kind])
    if architecture == "gpt2":  # its layers are Conv1D, which are not coded here
        assert export_gguf(loaded, tmp_path / "model.gguf", lineage={}).types == {"F32": 16}
        return
    written = export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    linears = 4 if architecture == "phi3" else 7
    assert written.types[kind] == linears
    back = load_gguf(tmp_path / "model.gguf").network.state_dict()
    for name, module in loaded.model.named_modules():
        if hasattr(module, "quantized_weight"):
            assert torch.equal(back[f"{name}.weight"], module.quantized_weight().dequantize()), name


def test_a_coded_embedding_and_a_float_head_are_stored_apart(tmp_path: Path) -> None:
    loaded = pico_decoder(**WIDE)
    table = loaded.model.get_input_embeddings()
    scheme = Scheme(bits=8, activations="float")
    coded = QuantizedEmbedding(table.num_embeddings, table.embedding_dim, padding_idx=None, scheme=scheme)
    coded.set_weight(quantize_tensor(table.weight, scheme))
    replace_module(loaded.model, table, coded)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    types = tensors_of(tmp_path / "model.gguf")
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q8_0", "F32")


def test_half_floats_are_kept_for_matrices_and_refused_beyond_their_range(tmp_path: Path) -> None:
    loaded = pico_decoder()
    written = export_gguf(loaded, tmp_path / "model.gguf", floats="F16", lineage={})
    assert written.types == {"F16": 29, "F32": 9}
    loaded.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(UnsupportedError, match=r"'model.layers.1.mlp.up_proj.weight' has values beyond float16"):
        export_gguf(loaded, tmp_path / "other.gguf", floats="F16", lineage={})


def test_the_file_is_read_back_and_a_changed_byte_is_found(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    loaded = pico_decoder()
    export_gguf(loaded, file, lineage={})
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    from edgekit.exporters.gguf import _tensors

    with pytest.raises(ModelError, match="is not what was written"):
        check_file(file, list(_tensors(loaded, "F32")))


def test_a_module_whose_scheme_has_no_block_is_named(tmp_path: Path) -> None:
    loaded = pico_decoder(**WIDE)
    code_linears(loaded, Scheme(bits=8, group_size=16, activations="float"))
    with pytest.raises(UnsupportedError, match=r"module 'model.layers.0.self_attn.q_proj': .* groups of 16"):
        export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("opt", {}, "found the architecture 'opt', expected one of llama"),
        ("llama", {"hidden_act": "gelu"}, "found hidden_act = 'gelu', expected 'silu'"),
        ("qwen3", {"attention_bias": True}, "found attention_bias = True, expected False"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers = \[1, 0, 1, 0\], expected \[1, 1, 1, 0\]"),
        ("gemma3_text", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar = 64, expected 8"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary scaling of the type 'dynamic', expected one of default, linear",
        ),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_by_name(
    tmp_path: Path, architecture: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        export_gguf(pico_decoder(architecture, **settings), tmp_path / "model.gguf", lineage={})


def test_a_window_that_llama_cpp_does_not_compute_shortens_the_context(tmp_path: Path) -> None:
    written = export_gguf(pico_decoder("mistral", sliding_window=16), tmp_path / "a.gguf", lineage={})
    assert written.context_length == 16
    assert written.notes == ["context shortened from 128 to 16: llama.cpp computes mistral without its window"]
    assert export_gguf(pico_decoder("gemma3_text"), tmp_path / "b.gguf", lineage={}).context_length == 128


def test_the_stage_writes_an_artifact_with_all_parts(tmp_path: Path) -> None:
    model = publish_model(pico_decoder(), tmp_path / "model")
    context = StageContext(out=tmp_path / "out")
    artifact = export(StageInputs(model=model), ExportConfig(format="gguf", precision="float16"), context)
    assert artifact.kind == "gguf"
    assert sorted(artifact.files) == [
        "chat_template.jinja",
        "config.json",
        "export.json",
        "generation_config.json",
        "model.gguf",
        "task.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    fields = GGUFReader(artifact.path / "model.gguf").fields
    assert fields["edgekit.model_digest"].contents() == model.digest
    again = StageContext(out=tmp_path / "again")
    assert export(StageInputs(model=model), ExportConfig(format="gguf", precision="float16"), again).digest == (
        artifact.digest
    )


def test_the_stage_refuses_a_classifier_and_leaves_nothing(tmp_path: Path) -> None:
    model = pico_model_artifact(tmp_path)
    with pytest.raises(UnsupportedError, match="found a model for the task 'text-classification', expected causal-lm"):
        export(StageInputs(model=model), ExportConfig(format="gguf"), StageContext(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_llama_3_rotary_scaling_survives(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    loaded = pico_decoder("llama", rope_parameters=scaling, head_dim=32)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    stored = next(t for t in GGUFReader(tmp_path / "model.gguf").tensors if t.name == "rope_freqs.weight")
    plain = 10000.0 ** -(np.arange(0, 32, 2) / 32)
    # transformers' own frequencies are the independent reference.
    assert np.allclose(plain / stored.data, loaded.model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    back = load_gguf(tmp_path / "model.gguf")
    assert back.network.config.rope_parameters == scaling
    ids = torch.arange(4, 84)[None]
    with torch.inference_mode():
        assert torch.equal(back.network(ids).logits, loaded.model(ids).logits)


def test_an_artifact_opens_again(tmp_path: Path) -> None:
    model = publish_model(pico_decoder(), tmp_path / "model")
    export(StageInputs(model=model), ExportConfig(format="gguf"), StageContext(out=tmp_path / "out"))
    assert Artifact.open(tmp_path / "out", kind="gguf").lineage.stage == "export"
