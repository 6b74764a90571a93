from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import UsageError
from edgekit.runtimes.generation import GenerationConfig, generation_runtimes_for, get_generation_runtime
from edgekit.runtimes.torch_generation import TorchGenerationSession
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder


def whole(network, ids):
    with torch.inference_mode():
        return network(input_ids=torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_steps_and_chunks_give_the_logits_of_the_whole_sequence(architecture):
    loaded = pico_decoder(architecture)
    ids = np.random.default_rng(0).integers(4, 290, size=30).tolist()
    expected = whole(loaded.model, ids)
    session = TorchGenerationSession(loaded.model, 128)
    found = {9: session.prefill(np.array(ids[:10])), 17: session.prefill(np.array(ids[10:18]))}
    found |= {place: session.step(ids[place]) for place in range(18, 30)}
    assert session.position == 30
    for place, logits in found.items():
        np.testing.assert_allclose(logits, expected[place], atol=1e-5)
    session.reset()
    np.testing.assert_allclose(session.prefill(np.array(ids[:10])), expected[9], atol=1e-5)


def test_a_full_context_is_refused_and_nothing_is_lost():
    loaded = pico_decoder()
    session = TorchGenerationSession(loaded.model, 4)
    session.prefill(np.array([5, 6, 7]))
    with pytest.raises(UsageError, match=r"found 3 \+ 2 tokens, expected at most 4"):
        session.prefill(np.array([8, 9]))
    np.testing.assert_allclose(session.step(8), whole(loaded.model, [5, 6, 7, 8])[-1], atol=1e-5)
    with pytest.raises(UsageError, match="expected at most 4"):
        session.step(9)
    with pytest.raises(UsageError, match="found no tokens"):
        session.prefill(np.array([], dtype=np.int64))


def test_a_model_artifact_opens_and_a_longer_context_than_its_own_is_refused(tmp_path):
    model = publish_model(pico_decoder(), tmp_path / "model")
    runtime = get_generation_runtime("torch")
    assert runtime.name in [each.name for each in generation_runtimes_for("model")]
    session = runtime.open(model, GenerationConfig())
    assert session.context_length == 128
    assert session.prefill(np.array([5])).ndim == 1
    with pytest.raises(UsageError, match="found 200 tokens, expected 1 to 128"):
        runtime.open(model, GenerationConfig(context_length=200))


def test_an_unknown_runtime_is_told_the_nearest():
    with pytest.raises(UsageError, match="torch"):
        get_generation_runtime("torhc")
