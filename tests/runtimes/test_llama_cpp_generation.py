"""What llama.cpp makes of the files that edgekit writes; all but the last tests need its library."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.contract import StageContext, StageInputs
from edgekit.errors import EnvironmentLacksError, ModelError, UsageError
from edgekit.exporters.gguf import export_gguf
from edgekit.exporters.precision import apply_precision
from edgekit.exporters.stage import ExportConfig, export
from edgekit.models.gguf_pretokenizers import SPLITTINGS, Splitting
from edgekit.models.quantized import Scheme
from edgekit.models.source import LoadedModel
from edgekit.models.tokenizer import NASTY_TEXTS
from edgekit.runtimes.llama_cpp_generation import LlamaCppGeneration, LlamaCppSession
from edgekit.runtimes.llama_cpp_library import LOCATION_VARIABLE, find_library, load_library
from tests.coded_decoders import code_linears
from tests.pico import publish_model
from tests.pico_decoders import DECODERS, TRAINING_TEXT, pico_decoder
from tests.runtimes.llama_cpp import needs_llama_cpp
from tests.tokenizers_for_gguf import byte_level_tokenizer, sentencepiece_tokenizer

WRITTEN = [*(name for name in DECODERS if name != "opt"), "qwen2"]
WIDE = {"hidden_size": 64, "intermediate_size": 128}
TEXTS = [*NASTY_TEXTS, TRAINING_TEXT, "a<|im_start|>b </s>c", "12345 DON'T\r\n\n x"]


@dataclass(frozen=True)
class Settings:
    threads: int = 1
    context_length: int | None = None
    conversations: int = 1


def greedy(loaded: LoadedModel, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def greedy_llama_cpp(session: LlamaCppSession, ids: list[int], count: int) -> list[int]:
    session.reset()
    logits, found = session.prefill(ids), []
    for _ in range(count):
        found.append(int(logits.argmax()))
        logits = session.step(found[-1])
    return found


def differences(loaded: LoadedModel, session: LlamaCppSession, tokens: int = 60) -> tuple[float, float]:
    """Returns largest difference of a logit and the share of tokens with the same best one."""
    ids = torch.randint(4, 296, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = loaded.model(ids).logits[0].numpy()
    session.reset()
    found = session.logits(ids[0].numpy())
    return float(np.abs(found - expected).max()), float((found.argmax(-1) == expected.argmax(-1)).mean())


@needs_llama_cpp
@pytest.mark.runtime
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", WRITTEN)
def test_every_architecture_gives_torchs_logits_and_greedy_tokens(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    loaded = pico_decoder(architecture, tied=tied)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    exact = LlamaCppSession(tmp_path / "model.gguf", exact_attention=True)
    # GPT-2 and Gemma: llama.cpp looks the GELU up in a table of float16.
    tolerance = 5e-3 if architecture in ("gpt2", "gemma3_text") else 1e-5
    assert differences(loaded, exact)[0] < tolerance
    session = LlamaCppSession(tmp_path / "model.gguf")
    difference, same = differences(loaded, session)
    assert difference < 0.02
    assert same > 0.95
    prompt = loaded.tokenizer("The old man and the sea").input_ids
    assert greedy_llama_cpp(session, prompt, 24) == greedy(loaded, prompt, 24)


@needs_llama_cpp
@pytest.mark.runtime
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("architecture", WRITTEN)
def test_every_block_gives_torchs_greedy_tokens(tmp_path: Path, architecture: str, kind: str) -> None:
    sizes = {"n_embd": 64, "n_inner": 128} if architecture == "gpt2" else WIDE
    loaded = pico_decoder(architecture, **sizes)
    if kind == "F16":
        apply_precision(loaded.model, "float16")
    else:
        activations = "dynamic-int8"  # llama.cpp rounds them in blocks of 32 too
        bits, symmetric = (8 if kind == "Q8_0" else 4), kind != "Q4_1"
        code_linears(loaded, Scheme(bits=bits, group_size=32, symmetric=symmetric, activations=activations))
    export_gguf(loaded, tmp_path / "model.gguf", floats="F16" if kind == "F16" else "F32", lineage={})
    session = LlamaCppSession(tmp_path / "model.gguf")
    difference, same = differences(loaded, session)
    assert difference < (0.03 if kind == "F16" else 0.3)
    assert same > 0.85
    # Along llama.cpp's own greedy text, torch chooses the same token wherever rounding cannot decide.
    prompt = loaded.tokenizer("The old man and the sea").input_ids
    found = greedy_llama_cpp(session, prompt, 32)
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([prompt + found])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2).values
    clear = (best[:, 0] - best[:, 1]) > 2 * difference
    assert clear.any()
    assert torch.equal(logits.argmax(-1)[clear], torch.tensor(found)[clear])


@needs_llama_cpp
@pytest.mark.runtime
@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda splitting: splitting.names[0])
def test_llama_cpp_splits_as_its_names_say(tmp_path: Path, splitting: Splitting) -> None:
    loaded = pico_decoder(layers=1, vocab_size=420)
    loaded.tokenizer = byte_level_tokenizer(splitting)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    session = LlamaCppSession(tmp_path / "model.gguf")
    for text in TEXTS:
        assert session.tokenize(text) == loaded.tokenizer(text).input_ids, text
    assert session.chat_template() == loaded.tokenizer.chat_template
    assert session.ends_generation(loaded.tokenizer.eos_token_id)
    ids = session.tokenize("the sea \u00e9\U0001f600")
    assert b"".join(map(session.piece, ids)).decode() == "the sea \u00e9\U0001f600"


@needs_llama_cpp
@pytest.mark.runtime
@pytest.mark.parametrize("adds_space", [True, False])
def test_a_sentencepiece_tokenizer_is_llama_cpps(tmp_path: Path, adds_space: bool) -> None:
    tokenizer = sentencepiece_tokenizer(adds_space=adds_space)
    loaded = pico_decoder(layers=1, vocab_size=len(tokenizer))
    loaded.tokenizer = tokenizer
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    session = LlamaCppSession(tmp_path / "model.gguf")
    for text in TEXTS:
        if text:  # llama.cpp puts no space before nothing
            assert session.tokenize(text) == tokenizer(text).input_ids, text


@needs_llama_cpp
@pytest.mark.runtime
def test_prefill_steps_and_a_cut_cache_agree(tmp_path: Path) -> None:
    loaded = pico_decoder(max_position_embeddings=1024)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    session = LlamaCppSession(tmp_path / "model.gguf", exact_attention=True)
    ids = np.random.default_rng(0).integers(4, 296, 700)  # more than one batch of 512
    every = session.logits(ids)
    session.reset()
    assert np.allclose(session.prefill(ids), every[-1], atol=1e-4)
    session.truncate(600)
    assert session.position == 600
    for index in range(600, 610):
        assert np.allclose(session.step(int(ids[index])), every[index], atol=1e-4)


@needs_llama_cpp
@pytest.mark.runtime
def test_the_runtime_opens_an_export_with_the_tasks_context(tmp_path: Path) -> None:
    model = publish_model(pico_decoder(), tmp_path / "model")
    artifact = export(StageInputs(model=model), ExportConfig(format="gguf"), StageContext(out=tmp_path / "out"))
    runtime = LlamaCppGeneration()
    assert (runtime.name, runtime.version().split("-")[0]) == ("llama.cpp", "0.5.0")
    assert runtime.open(artifact, Settings(context_length=40)).context_length == 40
    with pytest.raises(UsageError, match="context: found 129 tokens, expected 1 to 128"):
        runtime.open(artifact, Settings(context_length=129))
    session = runtime.open(artifact, Settings(threads=2))
    assert (session.context_length, session.vocabulary_size) == (128, 300)
    with pytest.raises(UsageError, match="found 129 tokens, the model's context holds 128"):
        session.prefill([5] * 129)
    with pytest.raises(UsageError, match="found no tokens"):
        session.prefill([])
    with pytest.raises(UsageError, match="found the token 300, the vocabulary has 300"):
        session.step(300)
    session.close()


@needs_llama_cpp
@pytest.mark.runtime
def test_a_file_that_llama_cpp_cannot_open_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(ModelError, match=r"llama.cpp 0.5.0.* cannot open it .*invalid magic"):
        LlamaCppSession(tmp_path / "model.gguf")


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCATION_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert find_library() is None
    assert "npm install node-llama-cpp" in str(LlamaCppGeneration().unavailable_reason())
    with pytest.raises(EnvironmentLacksError, match="npm install node-llama-cpp"):
        LlamaCppSession(tmp_path / "model.gguf")
    monkeypatch.setenv(LOCATION_VARIABLE, str(tmp_path / "nowhere"))
    assert find_library() is None


def test_a_library_that_is_not_llama_cpp_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "libllama.so"
    file.write_bytes(b"no library")
    with pytest.raises(EnvironmentLacksError, match=r"is not a llama\.cpp that edgekit can call"):
        load_library(file)
