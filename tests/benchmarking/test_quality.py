"""Quality figures, by hand and against scikit-learn and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from edgekit.benchmarking.quality import Judged, cross_entropy, judge, judge_parts

NAMES = ["negative", "positive", "neutral"]


def random_judged(rows: int, seed: int = 0) -> Judged:
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((rows, 3)).astype(np.float32) * 3
    return Judged(logits, generator.integers(0, 3, size=rows), NAMES, {"test": rows})


def test_figures_by_hand():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=np.float32))
    judged = Judged(logits, np.array([0, 1, 1, 2]), NAMES, {"test": 4})
    teacher = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    found = judge(judged, teacher)
    assert found.accuracy == 0.75
    assert found.cross_entropy == pytest.approx(-np.log([0.7, 0.8, 0.25, 0.6]).mean(), rel=1e-6)
    assert found.per_label_recall == {"negative": 1.0, "positive": 0.5, "neutral": 1.0}
    assert found.teacher_agreement == 0.5
    assert found.accuracy_change == 0.0
    assert (found.rows, found.split) == (4, "test")


def test_cross_entropy_agrees_with_torch_in_float64():
    judged = random_judged(500)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(judged.logits).double(), torch.from_numpy(judged.labels)
    )
    assert cross_entropy(judged.logits, judged.labels) == pytest.approx(float(expected), rel=1e-12)


def test_cross_entropy_of_huge_logits_is_finite():
    assert cross_entropy(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1])) == pytest.approx(2e4)


def test_recall_agrees_with_scikit_learn():
    from sklearn.metrics import recall_score

    judged = random_judged(300)
    expected = recall_score(judged.labels, judged.logits.argmax(axis=1), average=None)
    assert list(judge(judged).per_label_recall.values()) == pytest.approx(expected)


def test_a_label_without_rows_has_no_recall():
    judged = Judged(np.eye(3, dtype=np.float32)[[0, 1]], np.array([0, 1]), NAMES, {"test": 2})
    assert set(judge(judged).per_label_recall) == {"negative", "positive"}


def test_without_a_teacher_there_is_no_change():
    found = judge(random_judged(10))
    assert found.teacher_agreement is None
    assert found.accuracy_change is None
    assert found.accuracy_change_interval is None


def test_a_model_compared_with_itself_does_not_change():
    judged = random_judged(200)
    found = judge(judged, judged.logits)
    assert found.teacher_agreement == 1.0
    assert found.accuracy_change == 0.0
    assert found.accuracy_change_interval.low < 0 < found.accuracy_change_interval.high


def test_parts_are_judged_each_and_together():
    judged = random_judged(50)
    several = Judged(judged.logits, judged.labels, NAMES, {"test": 20, "letters": 30})
    teacher = random_judged(50, seed=1).logits
    found = judge_parts(several, teacher)
    whole = judge(judged, teacher)
    assert found.model_copy(update={"parts": {}, "split": "test"}) == whole
    assert (found.split, found.rows) == ("test + letters", 50)
    right = judged.logits.argmax(axis=1) == judged.labels
    assert found.parts["test"].accuracy == right[:20].mean()
    assert found.parts["letters"].accuracy == right[20:].mean()
    change = 20 * found.parts["test"].accuracy_change + 30 * found.parts["letters"].accuracy_change
    assert change == pytest.approx(50 * found.accuracy_change)


def test_one_split_has_no_parts():
    assert judge_parts(random_judged(10)) == judge(random_judged(10))


def test_recall_intervals_are_wilsons():
    judged = random_judged(200)
    found = judge(judged)
    for index, name in enumerate(NAMES):
        hits = (judged.logits.argmax(axis=1) == judged.labels)[judged.labels == index]
        expected = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
        interval = found.per_label_recall_intervals[name]
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
