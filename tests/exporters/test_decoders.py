"""Every pico decoder, exported once, driven by plain onnxruntime and by onnxruntime-genai as apps drive it."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import edgekit
from edgekit.errors import ParityError, UnsupportedError
from edgekit.exporters.attention_survey import survey_attention
from edgekit.exporters.generation_parity import write_greedily
from edgekit.exporters.precision import apply_precision
from edgekit.exporters.self_check import self_check
from edgekit.models.source import load_model
from edgekit.runtimes.generation import GenerationConfig, get_generation_runtime
from edgekit.runtimes.onnxruntime_generation import LOGITS_TO_KEEP
from edgekit.runtimes.torch_generation import TorchGenerationSession
from tests.pico import publish_model
from tests.pico_decoders import CONTEXT, DECODERS, pico_decoder

# The operator turns query and key only of heads whose size is a multiple of 16.
WIDE = {"hidden_size": 64, "head_dim": 16}
FUSED = dict.fromkeys(DECODERS, WIDE) | {"gpt2": {}, "opt": {}, "smollm3": {**WIDE, "no_rope_layers": [1, 0]}}
ALIKE = ("qwen3", "mistral", "granite", "olmo2", "opt")
"""Each of their parts is in another of the list too, so they are left to the slow tests."""
SORTS = [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in DECODERS]
LAYERS = 2
DRIVINGS = {
    "exact": ("onnxruntime", False),
    "shared": ("onnxruntime", True),
    "genai": ("onnxruntime-genai", True),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SORTS)
def exported(request, tmp_path_factory):
    """A model, and its float32 export."""
    directory = tmp_path_factory.mktemp(request.param)
    loaded = pico_decoder(request.param, layers=LAYERS, **FUSED[request.param])
    model = publish_model(loaded, directory / "model")
    return loaded, edgekit.export(model, out=directory / "onnx")


def tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 290, length)


def open_export(export, driving: str):
    name, shared = DRIVINGS[driving]
    return get_generation_runtime(name).open(export, GenerationConfig(shared_cache=shared))


@pytest.mark.parametrize("driving", DRIVINGS)
def test_greedy_text_is_torchs(exported, driving):
    loaded, export = exported
    session, original = open_export(export, driving), TorchGenerationSession(loaded.model, CONTEXT)
    for seed, length in enumerate((1, 7, 40)):
        prompt = tokens(length, seed).tolist()
        assert write_greedily(session, prompt, 24) == write_greedily(original, prompt, 24)


@pytest.mark.parametrize("driving", DRIVINGS)
def test_chunks_and_steps_give_the_logits_of_the_whole_text(exported, driving):
    loaded, export = exported
    ids = tokens(60)
    expected = TorchGenerationSession(loaded.model, CONTEXT).logits(ids)
    session = open_export(export, driving)
    found = [session.prefill(ids[:20]), session.prefill(ids[20:57])]
    found += [session.step(int(token)) for token in ids[57:]]
    np.testing.assert_allclose(np.stack(found), expected[[19, 56, 57, 58, 59]], atol=1e-4)
    session.reset()
    np.testing.assert_allclose(session.logits(ids[:9]), expected[:9], atol=1e-4)


def test_batches_padded_on_either_side_give_each_text_its_own_logits(exported):
    loaded, export = exported
    texts = [tokens(9, 1), tokens(14, 2), tokens(5, 3)]
    width = max(map(len, texts))
    session = onnxruntime.InferenceSession(export.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    alone = [TorchGenerationSession(loaded.model, CONTEXT).logits(text) for text in texts]
    for side in ("left", "right"):
        ids, mask = np.full((3, width), 3), np.zeros((3, width), dtype=np.int64)
        for row, text in enumerate(texts):
            place = slice(width - len(text), width) if side == "left" else slice(0, len(text))
            ids[row, place], mask[row, place] = text, 1
        logits, past = run(session, ids, mask, empty_past(session, 3))
        for row, expected in enumerate(alone):
            np.testing.assert_allclose(logits[row][mask[row] == 1], expected, atol=1e-4)
        # And go on, every text with a token of its own.
        after = np.array([[10], [20], [30]])
        logits, _ = run(session, after, np.concatenate((mask, np.ones((3, 1), dtype=np.int64)), axis=1), past)
        for row, text in enumerate(texts):
            longer = TorchGenerationSession(loaded.model, CONTEXT).logits(np.append(text, after[row]))
            np.testing.assert_allclose(logits[row, -1], longer[-1], atol=1e-4)


def test_a_batch_of_prompts_in_genai_gives_each_its_own_text(exported):
    _, export = exported
    library = pytest.importorskip("onnxruntime_genai")
    model = library.Model(str(export.path))
    tokenizer = library.Tokenizer(model)
    texts = ["The old man and the sea", "A river", "The king was crowned in the city"]
    together = genai_logits(library, model, tokenizer.encode_batch(texts), len(texts))
    for row, text in enumerate(texts):
        np.testing.assert_allclose(
            genai_logits(library, model, tokenizer.encode(text), 1)[:, 0], together[:, row], atol=1e-4
        )


def genai_logits(library, model, prompts, batch: int) -> np.ndarray:
    """Returns the logits of 6 greedy steps, (6, B, V)."""
    parameters = library.GeneratorParams(model)
    parameters.set_search_options(max_length=64, batch_size=batch, min_length=64)
    generator = library.Generator(model, parameters)
    generator.append_tokens(prompts)
    found = []
    for _ in range(6):
        found.append(np.array(generator.get_logits()).reshape(batch, -1))
        generator.generate_next_token()
    return np.stack(found)


def empty_past(session, batch: int) -> dict[str, np.ndarray]:
    entries = [entry for entry in session.get_inputs() if entry.name.startswith("past")]
    return {entry.name: np.zeros((batch, entry.shape[1], 0, entry.shape[3]), dtype=np.float32) for entry in entries}


def run(session, ids, mask, past):
    feeds = {"input_ids": ids, "attention_mask": mask, LOGITS_TO_KEEP: np.array(0), **past}
    logits, *present = session.run(None, feeds)
    return logits, dict(zip(past, present, strict=True))


def test_each_layer_is_one_attention_and_the_tied_table_is_stored_once(exported):
    loaded, export = exported
    graph = onnx.load(export.path / "onnx" / "model.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["GroupQueryAttention"] == LAYERS
    assert operators["Softmax"] == operators["ReduceMean"] == 0
    table = list(loaded.model.get_input_embeddings().weight.shape)
    assert [list(entry.dims) in (table, table[::-1]) for entry in graph.initializer].count(True) == 1
    turned = [node for node in graph.node if any(entry.name == "do_rotary" and entry.i for entry in node.attribute)]
    facts = survey_attention(loaded.model, CONTEXT).layers
    assert len(turned) == sum(layer.rotary is not None for layer in facts)


def test_only_the_last_token_gets_logits_unless_more_are_asked_for(exported):
    _, export = exported
    session = onnxruntime.InferenceSession(export.path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    ids = tokens(6)[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty_past(session, 1)}
    assert session.run(["logits"], feeds)[0].shape[1] == 1
    assert session.run(["logits"], {**feeds, LOGITS_TO_KEEP: np.array(4)})[0].shape[1] == 4


@pytest.mark.parametrize(
    "name", ["llama", pytest.param("phi3", marks=pytest.mark.slow), pytest.param("gemma3_text", marks=pytest.mark.slow)]
)
def test_heads_too_small_for_the_operators_rotary_are_turned_before_it(name, tmp_path):
    model = publish_model(pico_decoder(name, layers=1), tmp_path / "model")
    export = edgekit.export(model, out=tmp_path / "onnx")  # which checks itself against torch
    graph = onnx.load(export.path / "onnx" / "model.onnx").graph
    assert not any(entry.name == "do_rotary" for node in graph.node for entry in node.attribute)


SCHEMES = {
    "4 bits, tied": {"bits": 4, "group_size": 16, "embeddings": 4, "embeddings_group_size": 16, "head": 4,
                     "head_group_size": 16},
    "4 bits asymmetric, tied": {"bits": 4, "group_size": 32, "symmetric": False, "embeddings": 4,
                                "embeddings_group_size": 32, "head": 4, "head_group_size": 32},
    "8 bits by channel, tied": {"bits": 8, "embeddings": 8, "head": 8},
    "4 bits, float tables": {"bits": 4, "group_size": 32, "embeddings": None, "head": None},
}  # fmt: skip


SLOW_SCHEMES = ("4 bits asymmetric, tied", "4 bits, float tables")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW_SCHEMES else ()) for name in SCHEMES]
)
def test_codes_are_exported_as_torch_runs_them_and_tied_ones_once(name, tmp_path):
    model = publish_model(pico_decoder(layers=1, **WIDE), tmp_path / "model")
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**SCHEMES[name]), out=tmp_path / "codes")
    export = edgekit.export(student, out=tmp_path / "onnx")
    original = TorchGenerationSession(load_model(student).model, CONTEXT)
    ids = tokens(30)
    error = open_export(export, "shared").logits(ids) - original.logits(ids)
    assert abs(error).mean() < 2e-3
    graph = onnx.load(export.path / "onnx" / "model.onnx").graph
    vocabulary = model_vocabulary(model)
    large = [entry for entry in graph.initializer if vocabulary in entry.dims and np.prod(entry.dims) > vocabulary * 8]
    assert len(large) == 1


def test_floats_in_the_place_of_codes_stay_tied_and_scaled(tmp_path):
    """Gemma multiplies the rows of its table, which its head shares, by a number."""
    model = publish_model(pico_decoder("gemma3_text", layers=1), tmp_path / "model")
    settings = edgekit.QuantizeConfig(bits=4, group_size=16, embeddings=4, embeddings_group_size=16)
    student = edgekit.quantize(model, settings, out=tmp_path / "codes")
    loaded = load_model(student).model
    apply_precision(loaded, "float32")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    ids = tokens(20)
    codes = TorchGenerationSession(load_model(student).model, CONTEXT).logits(ids)
    assert (
        abs(TorchGenerationSession(loaded, CONTEXT).logits(ids) - codes).mean() < 0.02
    )  # activations are rounded there
    export = edgekit.export(student, edgekit.ExportConfig(precision="float32"), out=tmp_path / "onnx")
    found = open_export(export, "shared").logits(ids)
    np.testing.assert_allclose(found, TorchGenerationSession(loaded, CONTEXT).logits(ids), atol=1e-4)


def model_vocabulary(model) -> int:
    return json.loads((model.path / "config.json").read_text())["vocab_size"]


def test_weights_beside_the_graph_give_the_same_text(tmp_path):
    model = publish_model(pico_decoder(layers=1, **WIDE), tmp_path / "model")
    settings = edgekit.ExportConfig(external_data=True, precision="float16")
    export = edgekit.export(model, settings, out=tmp_path / "onnx")
    assert (export.path / "onnx" / "model.onnx_data").stat().st_size > 4096
    prompt = tokens(9).tolist()
    texts = [write_greedily(open_export(export, driving), prompt, 12) for driving in DRIVINGS]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("bloom", {"n_head": 4, "n_layer": 2}, "AttentionInterface|ALiBi"),
        ("mixtral", {"num_local_experts": 4}, "mixture of experts"),
        ("mamba", {"state_size": 4}, "AttentionInterface|layers"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "'dynamic'"),
    ],
)
def test_what_no_operator_computes_is_refused_by_name(architecture, settings, reason, tmp_path):
    model = publish_model(pico_decoder(architecture, layers=2, **settings), tmp_path / "model")
    with pytest.raises(UnsupportedError, match=reason):
        edgekit.export(model, out=tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_file_that_computes_something_else_is_refused(exported):
    loaded, export = exported
    file = export.path / "onnx" / "model.onnx"
    self_check(file, loaded.model, CONTEXT, left_padding=True)
    parameter = next(p for name, p in loaded.model.named_parameters() if name.endswith(("norm.weight", "ln_f.weight")))
    before = parameter.data.clone()
    parameter.data += 0.05
    with pytest.raises(ParityError, match="with past tensors of the exact length"):
        self_check(file, loaded.model, CONTEXT, left_padding=True)
    parameter.data = before


def test_a_model_that_answers_to_noise_is_held_to_its_own_answer_and_never_to_another_model(tmp_path, monkeypatch):
    """Few bits make a model magnify the noise of float sums: here the noise is large instead of the model bad."""
    model = publish_model(pico_decoder(layers=LAYERS, **WIDE), tmp_path / "model")
    codes = edgekit.quantize(model, edgekit.QuantizeConfig(bits=8), out=tmp_path / "codes")
    file = edgekit.export(codes, out=tmp_path / "onnx").path / "onnx" / "model.onnx"
    network = load_model(codes).model
    monkeypatch.setattr("edgekit.exporters.self_check._ROUNDED", 1e-9)
    with pytest.raises(ParityError, match="expected at most"):
        self_check(file, network, CONTEXT, left_padding=True)
    monkeypatch.setattr("edgekit.exporters.sensitivity.DISTURBANCE", 0.3)
    self_check(file, network, CONTEXT, left_padding=True)
    other = load_model(
        edgekit.quantize(
            publish_model(pico_decoder(layers=LAYERS, seed=1, **WIDE), tmp_path / "other"),
            edgekit.QuantizeConfig(bits=8),
            out=tmp_path / "other-codes",
        )
    ).model
    with pytest.raises(ParityError, match=r"expected at most 0\.5"):
        self_check(file, other, CONTEXT, left_padding=True)
