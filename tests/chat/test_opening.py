"""Opening an artifact to talk with."""

from __future__ import annotations

import pytest

from edgekit.chat.conversation import ConversationConfig
from edgekit.chat.opening import open_conversation
from edgekit.errors import UsageError
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import CONTEXT, pico_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish_model(pico_decoder("llama", layers=1), tmp_path_factory.mktemp("chat") / "model")


def test_it_answers_and_has_room_for_the_models_context(model):
    opened = open_conversation(model, ConversationConfig(max_tokens=3))
    assert opened.runtime.startswith("torch 2.")
    assert opened.session.context_length == CONTEXT
    assert len(opened.conversation.ask("Hello").token_ids) <= 3


def test_a_longer_context_than_the_models_is_refused(model):
    with pytest.raises(UsageError, match="context: found 4096 tokens, expected 1 to 128"):
        open_conversation(model, ConversationConfig(), context_length=4096)


def test_a_runtime_of_another_format_is_refused(model):
    with pytest.raises(UsageError, match="'onnxruntime' generates with onnx artifacts"):
        open_conversation(model, ConversationConfig(), runtime="onnxruntime")


def test_a_classifier_does_not_talk(tmp_path):
    with pytest.raises(UsageError, match="found a model for the task 'text-classification', expected a language model"):
        open_conversation(pico_model_artifact(tmp_path / "model"), ConversationConfig())
