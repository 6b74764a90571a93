"""transformers.js, in Node, writes on with an exported language model as it is."""

from __future__ import annotations

import json
import subprocess

import pytest

import edgekit
from edgekit.exporters.generation_parity import write_greedily
from edgekit.runtimes.torch_generation import TorchGenerationSession
from tests.peers.opening import HERE, needs_peers
from tests.pico import publish_model
from tests.pico_decoders import CONTEXT, pico_decoder

pytestmark = [pytest.mark.runtime, needs_peers]

TEXTS = ["The old man and the sea", "A river", "The king was crowned in the city"]
TOKENS = 12


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_texts_alone_and_in_a_padded_batch_are_torchs(architecture, tmp_path):
    loaded = pico_decoder(architecture, layers=2, **({} if architecture == "gpt2" else {"hidden_size": 64}))
    export = edgekit.export(publish_model(loaded, tmp_path / "model"), out=tmp_path / "onnx")
    given = json.dumps({"texts": TEXTS, "tokens": TOKENS})
    command = ["node", HERE / "generate.mjs", export.path]
    ran = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    session = TorchGenerationSession(loaded.model, CONTEXT)
    expected = [write_greedily(session, loaded.tokenizer(text)["input_ids"], TOKENS) for text in TEXTS]
    assert found["alone"] == expected
    assert found["together"] == expected
    messages = [{"role": "user", "content": TEXTS[0]}]
    rendered = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found["chat"] == rendered
