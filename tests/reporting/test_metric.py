"""Accuracy and perplexity, each in its own words and with its own direction."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.reporting import metric
from edgekit.reporting.metric import METRICS, build_metric, metric_of
from edgekit.results import Interval, LanguageQuality, Quality
from tests.reporting.examples import build, minimal_build
from tests.reporting.language_examples import language_build, language_quality

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def accuracy(value: float, **changes: object) -> Quality:
    whole = Interval(low=0.0, high=1.0)
    fields = {"accuracy": value, "accuracy_interval": whole, "cross_entropy": 0.5, "rows": 10}
    return Quality.model_validate({**fields, **changes})


def test_several_splits_are_named_with_their_value() -> None:
    part = accuracy(0.825)
    both = part.model_copy(update={"parts": {"test": part, "imdb": accuracy(0.74)}})
    assert metric.values_by_split(both) == "test 82.5 %, imdb 74.0 %"
    assert metric.values_by_split(part) == ""
    text = language_quality(26.84)
    assert metric.values_by_split(text.model_copy(update={"parts": {"test": text, "news": text}})) == (
        "test 26.8, news 26.8"
    )


def test_a_change_is_a_difference_of_accuracies_and_a_ratio_of_perplexities() -> None:
    compared = accuracy(
        0.83, accuracy_change=-0.006, accuracy_change_interval={"low": -0.012, "high": 0.001}, teacher_agreement=0.93
    )
    assert metric.change_in_words(compared) == f"{MINUS}0.6 points ({MINUS}1.2 to +0.1)"
    assert metric.change_with_range(compared) == f"{MINUS}0.6 ({MINUS}1.2 to +0.1)"
    assert metric.agreement(compared) == "93.0 %"
    student = language_quality(38.0, ratio=1.42)
    assert metric.change_in_words(student) == "1.42 times the teacher's (1.38 to 1.46)"
    assert metric.divergence(student) == "0.310"
    for alone in (accuracy(0.83), language_quality(26.8)):
        assert metric.change_in_words(alone) == "\N{EN DASH}"
        assert metric.change_range(alone) == ""
        assert metric.agreement(alone) == "\N{EN DASH}"


def test_the_value_comes_with_its_interval_and_its_evidence() -> None:
    assert metric.value_with_range(accuracy(0.842)) == "84.2 % (0.0 to 100.0)"
    assert metric.evidence(accuracy(0.842)) == "10 test rows"
    assert metric.value_with_range(language_quality(38.0)) == "38.0 (36.5 to 39.5)"
    assert metric.evidence(language_quality(38.0)) == "41,200 test tokens"


def test_a_build_is_judged_by_the_metric_of_its_qualities() -> None:
    assert build_metric(build()).name == "accuracy"
    assert build_metric(language_build()).name == "perplexity"
    assert (
        build_metric(language_build().model_copy(update={"teacher_quality": None, "stages": []})).name == "perplexity"
    )
    assert build_metric(minimal_build()).name == "accuracy"


@pytest.mark.parametrize(
    ("name", "before", "after", "text", "tone"),
    [
        ("accuracy", 0.70, 0.84, "+14.0", "gain"),
        ("accuracy", 0.84, 0.83, f"{MINUS}1.0", "loss"),
        ("accuracy", 0.84, 0.8401, "0.0", "none"),
        ("perplexity", 186.0, 47.0, f"0.253{TIMES}", "gain"),
        ("perplexity", 47.0, 49.0, f"1.04{TIMES}", "loss"),
        ("perplexity", 47.0, 47.1, f"1.00{TIMES}", "none"),
    ],
)
def test_steps(name: str, before: float, after: float, text: str, tone: str) -> None:
    assert METRICS[name].step(before, after) == text
    assert METRICS[name].tone(before, after) == tone


@given(st.floats(1.01, 1e5), st.floats(1.01, 1e5))
def test_a_step_back_has_the_other_tone(one: float, other: float) -> None:
    judged = METRICS["perplexity"]
    opposite = {"gain": "loss", "loss": "gain", "none": "none"}
    assert judged.tone(other, one) == opposite[judged.tone(one, other)]


def test_details_name_everything_that_was_found() -> None:
    found = dict(metric.details(language_quality(38.0, ratio=1.42)))
    assert found["perplexity (95 %)"] == "38.0 (36.5 to 39.5)"
    assert found["tokens"] == "41,200"
    assert found["texts"] == "120"
    assert found["KL from the teacher"] == "0.310 nats a token, p99 2.80"
    assert found["change against the teacher"] == "1.42 times the teacher's (1.38 to 1.46)"
    assert found["same token as the teacher"] == "71.0 %"
    assert math.isclose(float(found["cross-entropy"].split()[0]), math.log(38.0), abs_tol=1e-4)
    assert "recall of negative" in dict(metric.details(build().exports[0].quality))


def test_only_classifiers_have_labels() -> None:
    assert metric.as_classifier(accuracy(0.8)) == accuracy(0.8)
    assert metric.as_classifier(language_quality(38.0)) is None
    assert metric.as_classifier(None) is None
    assert isinstance(language_quality(38.0), LanguageQuality)
    assert not metric_of(language_quality(38.0)).higher_is_better
