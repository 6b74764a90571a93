"""transformers.js, in Node, opens a bundle as it is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.peers.opening import (
    HERE,
    LONG,
    TOLERANCE,
    assert_each_text_is_edgekits,
    assert_labels_and_scores_are_edgekits,
    assert_padding_is_edgekits,
    classify,
    expected_ids,
    needs_peers,
    run_here,
)

pytestmark = [pytest.mark.runtime, needs_peers]


@pytest.fixture(scope="module")
def found(bundle):
    return classify(["node", HERE / "classify.mjs"], bundle)


def test_ids_and_logits_of_each_text(found, bundle):
    assert_each_text_is_edgekits(found, bundle)


def test_labels_and_scores_of_its_pipeline(found, bundle):
    assert_labels_and_scores_are_edgekits(found, bundle)


def test_a_padded_batch(found, bundle):
    assert_padding_is_edgekits(found, bundle)


def test_a_long_text_is_cut_to_the_same_length_but_loses_its_closing_token(found, bundle):
    """transformers.js cuts after it has added the special tokens; given its ids, the logits are the same."""
    alone, expected = found["alone"][-1], expected_ids(bundle, LONG)
    assert len(alone["ids"][0]) == len(expected)
    assert alone["ids"][0][:-1] == expected[:-1]
    np.testing.assert_allclose(alone["logits"], run_here(bundle, alone), atol=TOLERANCE)
