"""Several conversations at once: each gets the logits that it would get alone."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtimes.conversations import open_conversations
from edgekit.runtimes.generation import GenerationConfig, get_generation_runtime
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.runtimes.llama_cpp import needs_llama_cpp

IDS = np.random.default_rng(0).integers(4, 290, size=(3, 20))
PARTS = ((0, 9), (9, 10), (10, 11))
"""A prompt and two tokens."""


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt2"])
def model(request, tmp_path_factory):
    return publish_model(pico_decoder(request.param), tmp_path_factory.mktemp("model") / "model")


def alone(runtime, artifact, ids, config):
    session = runtime.open(artifact, config)
    found = [session.prefill(ids[start:end]) for start, end in PARTS]
    session.close()
    return found


def largest_difference(runtime, artifact, **settings):
    """Returns how far the logits of three conversations at once are from those of each alone, twice over."""
    session = open_conversations(runtime, artifact, GenerationConfig(conversations=3, **settings))
    expected = [alone(runtime, artifact, row, GenerationConfig(**settings)) for row in IDS]
    largest = 0.0
    for _ in range(2):
        for part, (start, end) in enumerate(PARTS):
            found = session.take(IDS[:, start:end])
            largest = max(largest, float(np.abs(found - np.stack([each[part] for each in expected])).max()))
        session.reset()
    with pytest.raises(UsageError, match="found"):
        session.take(np.zeros((3, 129), dtype=np.int64))
    session.close()
    return largest


def test_torch(model):
    assert largest_difference(get_generation_runtime("torch"), model) < 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_onnxruntime(model, tmp_path, shared):
    export = edgekit.export(model, out=tmp_path / "onnx")
    assert largest_difference(get_generation_runtime("onnxruntime"), export, shared_cache=shared) < 1e-5


def test_onnxruntime_takes_a_token_of_each(tmp_path):
    model = publish_model(pico_decoder("llama"), tmp_path / "model")
    export = edgekit.export(model, out=tmp_path / "onnx")
    session = open_conversations(get_generation_runtime("onnxruntime"), export, GenerationConfig(conversations=3))
    session.take(IDS[:, :9])
    with pytest.raises(UsageError, match="found 2 tokens after 9, expected 1"):
        session.take(IDS[:, 9:11])


@needs_llama_cpp
@pytest.mark.runtime
def test_llama_cpp(model, tmp_path):
    export = edgekit.export(model, edgekit.ExportConfig(format="gguf"), out=tmp_path / "gguf")
    assert largest_difference(get_generation_runtime("llama.cpp"), export) < 0.02


def test_genai_holds_one(tmp_path):
    model = publish_model(pico_decoder("llama"), tmp_path / "model")
    export = edgekit.export(model, out=tmp_path / "onnx")
    with pytest.raises(UnsupportedError, match="found 3 conversations at once, expected 1"):
        open_conversations(get_generation_runtime("onnxruntime-genai"), export, GenerationConfig(conversations=3))
