"""`ORTModelForSequenceClassification` of optimum-onnx opens a bundle as it is."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.packaging.bundle import open_bundle
from tests.peers.opening import (
    HERE,
    LONG,
    PEERS,
    TOLERANCE,
    assert_each_text_is_edgekits,
    assert_labels_and_scores_are_edgekits,
    assert_padding_is_edgekits,
    classify,
    expected_ids,
    needs_peers,
)

pytestmark = [pytest.mark.runtime, needs_peers]


@pytest.fixture(scope="module")
def found(bundle):
    return classify([PEERS / "optimum" / "bin" / "python", HERE / "classify_optimum.py"], bundle)


def test_ids_and_logits_of_each_text(found, bundle):
    assert_each_text_is_edgekits(found, bundle)


def test_labels_and_scores_of_its_pipeline(found, bundle):
    assert_labels_and_scores_are_edgekits(found, bundle)


def test_a_padded_batch(found, bundle):
    assert_padding_is_edgekits(found, bundle)


def test_a_long_text_is_cut_to_the_recipes_length(found, bundle):
    alone = found["alone"][-1]
    assert alone["ids"] == [expected_ids(bundle, LONG)]
    np.testing.assert_allclose(alone["logits"][0], open_bundle(bundle.path).logits(LONG), atol=TOLERANCE)


def test_its_pipeline_cuts_a_long_text_to_the_recipes_length(found, bundle):
    (prediction,) = open_bundle(bundle.path).predict([LONG])
    assert found["scores"][-1] == pytest.approx(prediction.scores, abs=TOLERANCE)
