"""Perplexity, its interval and the distance from a teacher, against float64 and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarking.language_quality import TokenScores, judge_language, score_tokens


def documents(count: int, *, seed: int = 0, vocabulary: int = 11, distance: float = 0.0) -> list[TokenScores]:
    """Scores of random predictions, the teacher `distance` away from the model."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        logits = torch.randn(3 + index % 5, vocabulary, generator=generator)
        teacher = logits + distance * torch.randn(logits.shape, generator=generator)
        targets = torch.randint(vocabulary, (len(logits),), generator=generator)
        found.append(score_tokens(logits, targets, teacher))
    return found


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    scores = score_tokens(torch.zeros(6, 8), torch.arange(6))
    quality = judge_language({"test": [scores]})
    assert quality.perplexity == pytest.approx(8)
    assert quality.cross_entropy == pytest.approx(math.log(8))
    assert quality.perplexity_ratio is None
    assert (quality.tokens, quality.documents, quality.split) == (6, 1, "test")


def test_one_token_by_hand() -> None:
    # model: 1/4 and 3/4; teacher: 1/2 and 1/2
    logits, teacher = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    scores = score_tokens(logits, torch.tensor([1]), teacher)
    assert scores.negative_log_likelihood == pytest.approx([math.log(4 / 3)])
    assert scores.right.tolist() == [True]
    assert scores.teacher is not None
    assert scores.teacher.divergence == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    quality = judge_language({"test": [scores]})
    assert quality.perplexity_ratio == pytest.approx((4 / 3) / 2)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 1000))
def test_scores_are_those_of_float64(tokens: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocabulary, generator=generator) * 5
    teacher = torch.randn(tokens, vocabulary, generator=generator) * 5
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    scores = score_tokens(logits, targets, teacher)
    wide, teacher_wide = logits.double().numpy(), teacher.double().numpy()
    model = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    aim = np.exp(teacher_wide) / np.exp(teacher_wide).sum(1, keepdims=True)
    rows = np.arange(tokens)
    np.testing.assert_allclose(scores.negative_log_likelihood, -np.log(model[rows, targets]), rtol=1e-5, atol=1e-6)
    assert scores.teacher is not None
    np.testing.assert_allclose(scores.teacher.divergence, (aim * np.log(aim / model)).sum(1), rtol=1e-4, atol=1e-5)
    assert scores.teacher.agrees.tolist() == (model.argmax(1) == aim.argmax(1)).tolist()


def test_tokens_weigh_alike_whatever_their_document() -> None:
    long, short = score_tokens(torch.zeros(9, 4), torch.zeros(9, dtype=torch.long)), documents(1)[0]
    quality = judge_language({"test": [long, short]})
    expected = (9 * math.log(4) + short.negative_log_likelihood.sum()) / (9 + len(short.right))
    assert quality.cross_entropy == pytest.approx(expected)


def test_a_model_that_is_its_teacher_is_at_no_distance() -> None:
    quality = judge_language({"test": documents(20)})
    assert quality.perplexity_ratio == pytest.approx(1)
    assert quality.divergence == pytest.approx(0, abs=1e-6)
    assert quality.teacher_agreement == 1
    assert quality.perplexity_ratio_interval is not None
    assert quality.perplexity_ratio_interval.high == pytest.approx(1, abs=1e-6)


def test_splits_are_judged_together_and_apart() -> None:
    near, far = documents(30, seed=1, distance=0.1), documents(30, seed=2, distance=2.0)
    quality = judge_language({"test": near, "xsum": far})
    assert quality.split == "test + xsum"
    assert list(quality.parts) == ["test", "xsum"]
    assert quality.parts["test"].divergence < quality.divergence < quality.parts["xsum"].divergence
    assert quality.parts["xsum"].divergence_p99 > quality.parts["xsum"].divergence


def test_the_interval_covers_and_narrows_with_documents() -> None:
    few, many = judge_language({"test": documents(20, seed=3)}), judge_language({"test": documents(400, seed=3)})
    for quality in (few, many):
        assert quality.perplexity_interval.low < quality.perplexity < quality.perplexity_interval.high
    width = [q.perplexity_interval.high - q.perplexity_interval.low for q in (few, many)]
    assert width[1] < width[0] / 2


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = judge_language({"test": documents(4000, seed=4)}, resamples=10).cross_entropy
    hits = 0
    for seed in range(60):
        interval = judge_language({"test": documents(60, seed=100 + seed)}, resamples=400).perplexity_interval
        hits += interval.low <= math.exp(truth) <= interval.high
    assert 49 <= hits <= 60


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no document"):
        judge_language({"test": []})
