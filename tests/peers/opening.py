"""Opens a bundle in a foreign tool, in a process of its own, and compares what it finds with what edgekit computes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.data.preprocessing import encode
from edgekit.models.tokenizer import load_bare_tokenizer
from edgekit.packaging.bundle import open_bundle
from edgekit.packaging.manifest import read_manifest
from edgekit.runtimes.protocol import SessionConfig, get_runtime, select_inputs

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".peers"
# Each fits into 32 tokens, in bytes too.
TEXTS = [
    "a superb, moving film",
    "Dull & tedious!",
    "",
    "  two  spaces\tand\nlines ",
    "\U0001f600 caf\u00e9 \u2764\ufe0f\u200d\U0001f525",
    "\u8fd9\u90e8\u7535\u5f71\u975e\u5e38\u597d\u770b\u3002",
    "nai\u0308ve Z\u0361a\u0300\u0301 \ufb01n",
    "[CLS] </s> ##s",
]
LONG = "slow and dull " * 100
TOLERANCE = 1e-5

needs_peers = pytest.mark.skipif(not (PEERS / ".installed").exists(), reason="no .peers: make peers sets it up")


def classify(command: Sequence[Path | str], bundle: Artifact) -> dict:
    """Returns what a script of this folder prints for `TEXTS` and `LONG`."""
    given = json.dumps([*TEXTS, LONG])
    ran = subprocess.run([*command, bundle.path], input=given, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def expected_ids(bundle: Artifact, text: str) -> list[int]:
    manifest = read_manifest(bundle.path)
    tokenizer = load_bare_tokenizer(bundle.path / manifest.tokenizer)
    return encode([text], tokenizer, manifest.max_length, allow_empty=True)[0]


def run_here(bundle: Artifact, batch: dict) -> np.ndarray:
    """Returns the logits `(B, labels)` that edgekit's own session computes from the ids and mask of `batch`."""
    session = get_runtime("onnxruntime").open(bundle, SessionConfig())
    ids, mask = np.array(batch["ids"], dtype=np.int64), np.array(batch["mask"], dtype=np.int64)
    return session.run(select_inputs(session.input_names, ids, mask))["logits"]


def assert_each_text_is_edgekits(found: dict, bundle: Artifact) -> None:
    classifier = open_bundle(bundle.path)
    for text, alone in zip(TEXTS, found["alone"][:-1], strict=True):
        assert alone["ids"] == [expected_ids(bundle, text)], text
        np.testing.assert_allclose(alone["logits"][0], classifier.logits(text), atol=TOLERANCE, err_msg=text)


def assert_labels_and_scores_are_edgekits(found: dict, bundle: Artifact) -> None:
    predictions = open_bundle(bundle.path).predict(TEXTS)
    for prediction, scores in zip(predictions, found["scores"][:-1], strict=True):
        assert scores == pytest.approx(prediction.scores, abs=TOLERANCE)


def assert_padding_is_edgekits(found: dict, bundle: Artifact) -> None:
    together = found["together"]
    rows = zip(together["ids"], together["mask"], found["alone"], strict=True)
    assert len({sum(mask) for mask in together["mask"]}) > 1, "nothing is padded"
    for ids, mask, alone in rows:
        assert [token for token, kept in zip(ids, mask, strict=True) if kept] == alone["ids"][0]
    np.testing.assert_allclose(together["logits"], run_here(bundle, together), atol=TOLERANCE)
