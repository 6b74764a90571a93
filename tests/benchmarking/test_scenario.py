"""What is run: shapes, vocabulary, seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.benchmarking.scenario import VARIANTS, random_scenario, text_scenario
from edgekit.errors import DataError, ModelError, UsageError
from tests.pico import pico_texts, pico_tokenizer
from tests.runtimes.tiny import tiny_onnx_artifact


@pytest.fixture
def tiny(tmp_path):
    return tiny_onnx_artifact(tmp_path / "onnx")


def test_random_ids_have_the_shape_and_no_special_token(tiny):
    scenario = random_scenario(tiny, 3, 20, seed=0)
    ids = np.array(scenario.input_ids)
    tokenizer = pico_tokenizer("bert")
    assert ids.shape == (VARIANTS, 3, 20)
    assert not set(ids.ravel().tolist()) & set(tokenizer.all_special_ids)
    assert ids.min() >= 0
    assert ids.max() < len(tokenizer)
    assert len({str(batch) for batch in scenario.input_ids}) == VARIANTS


def test_the_seed_decides_the_ids(tiny):
    assert random_scenario(tiny, 1, 8, seed=1) == random_scenario(tiny, 1, 8, seed=1)
    assert random_scenario(tiny, 1, 8, seed=1) != random_scenario(tiny, 1, 8, seed=2)


def test_texts_fill_the_length_with_real_tokens(tiny):
    texts, _ = pico_texts(20)
    scenario = text_scenario(tiny, texts, 2, 16, seed=0)
    assert np.array(scenario.input_ids).shape == (VARIANTS, 2, 16)
    used = {token for text in texts for token in pico_tokenizer("bert")(text)["input_ids"]}
    assert set(np.array(scenario.input_ids).ravel().tolist()) <= used
    short = text_scenario(tiny, ["good"], 2, 16, seed=0)  # repeated until full
    assert np.array(short.input_ids).shape == (VARIANTS, 2, 16)


def test_no_text_is_an_error(tiny):
    with pytest.raises(DataError, match="found no token"):
        text_scenario(tiny, [], 1, 8, seed=0)


def test_a_length_beyond_the_model_is_refused(tiny):
    with pytest.raises(UsageError, match="length: found 65, expected at most 64"):
        random_scenario(tiny, 1, 65, seed=0)


def test_a_configuration_without_vocabulary_is_refused(tiny):
    (tiny.path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    with pytest.raises(ModelError, match="vocab_size: found None"):
        random_scenario(tiny, 1, 8, seed=0)
    (tiny.path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        random_scenario(tiny, 1, 8, seed=0)
