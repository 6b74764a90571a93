"""Sessions that write text: torch's, against the model called whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.errors import UsageError
from edgekit.runtimes.generation import GenerationSession, open_generation
from edgekit.runtimes.protocol import SessionConfig
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import CONTEXT, DECODERS, pico_decoder

IDS = [5, 9, 30, 31, 77, 12, 200, 8, 40, 41, 42]


@pytest.mark.parametrize("architecture", DECODERS)
def test_logits_in_parts_are_those_of_the_whole(tmp_path: Path, architecture: str) -> None:
    loaded = pico_decoder(architecture)
    session = open_generation(publish_model(loaded, tmp_path / "model"), "torch", SessionConfig())
    assert isinstance(session, GenerationSession)
    with torch.inference_mode():
        whole = loaded.model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(session.logits(IDS[:4]), whole[:4], atol=1e-5)
    np.testing.assert_allclose(session.prefill(IDS[4:7]), whole[6], atol=1e-5)
    np.testing.assert_allclose(session.step(IDS[7]), whole[7], atol=1e-5)
    assert session.position == 8
    session.reset()
    assert session.position == 0
    np.testing.assert_allclose(session.logits(IDS), whole, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    session = open_generation(publish_model(pico_decoder(), tmp_path / "model"), None, SessionConfig())
    with pytest.raises(UsageError, match="no tokens"):
        session.prefill([])
    session.prefill([4] * (CONTEXT - 1))
    session.step(4)
    with pytest.raises(UsageError, match=rf"found {CONTEXT + 1} tokens, the model's context holds {CONTEXT}"):
        session.step(4)


def test_a_classifier_does_not_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write text"):
        open_generation(pico_model_artifact(tmp_path), None, SessionConfig())
