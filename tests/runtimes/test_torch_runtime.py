"""The torch runtime against transformers itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.models.source import load_model
from edgekit.runtimes.protocol import SessionConfig, select_inputs
from edgekit.runtimes.torch_runtime import TorchRuntime
from tests.pico import pico_model_artifact


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_logits_are_those_of_transformers(tmp_path, architecture):
    artifact = pico_model_artifact(tmp_path, architecture=architecture, layers=2)
    session = TorchRuntime().open(artifact, SessionConfig())
    ids = np.random.default_rng(0).integers(5, 100, size=(2, 9))
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4])
    found = session.run(select_inputs(session.input_names, ids, mask))["logits"]
    with torch.no_grad():
        expected = load_model(artifact).model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert found.dtype == np.float32


def test_the_number_of_threads_is_given_back(tmp_path):
    artifact = pico_model_artifact(tmp_path, layers=1)
    before = torch.get_num_threads()
    session = TorchRuntime().open(artifact, SessionConfig(threads=before + 1))
    seen = []
    session._network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    ids = np.array([[5, 6]])
    session.run(select_inputs(session.input_names, ids, ids * 0 + 1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
