"""Results of classifiers and of language models are told apart by what they hold, wherever they are written."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from edgekit.results import (
    AnyMeasurement,
    AnyParity,
    AnyQuality,
    BuildResult,
    GenerationMeasurement,
    LanguageParity,
)
from tests.reporting.examples import build, measurement, parity, quality
from tests.reporting.language_examples import generation, language_build, language_parity, language_quality, with_parts


@pytest.mark.parametrize(
    ("union", "result"),
    [
        (AnyQuality, quality(0.84)),
        (AnyQuality, language_quality(38.0, ratio=1.42)),
        (AnyQuality, language_quality(38.0)),
        (AnyQuality, with_parts(38.0)),
        (AnyParity, parity()),
        (AnyParity, language_parity("top1_agreement 0.74 is below 0.99.")),
        (AnyMeasurement, measurement(3.8, 8_000_000)),
        (AnyMeasurement, generation()),
    ],
)
def test_a_result_reads_back_as_the_kind_that_was_written(union: object, result: object) -> None:
    found = TypeAdapter(union).validate_json(result.model_dump_json())
    assert type(found) is type(result)
    assert found == result


@pytest.mark.parametrize("result", [build(), language_build()])
def test_a_build_reads_back_equal(result: BuildResult) -> None:
    assert BuildResult.model_validate_json(result.model_dump_json()) == result


def test_neither_kind_takes_what_is_not_whole() -> None:
    fields = json.loads(language_quality(38.0).model_dump_json())
    del fields["tokens"]
    with pytest.raises(ValidationError, match="tokens"):
        TypeAdapter(AnyQuality).validate_python(fields)


def test_the_headline_is_the_metric_with_its_change() -> None:
    found = quality(0.84).headline
    assert (found.metric, found.value, found.change_name, found.unit) == ("accuracy", 0.84, "accuracy_change", "rows")
    assert found.change == pytest.approx(0.001)
    found = language_quality(38.0, ratio=1.42).headline
    assert (found.metric, found.value, found.change_name) == ("perplexity", 38.0, "perplexity_ratio")
    assert (found.change, found.amount, found.unit, found.divergence) == (1.42, 41_200, "tokens", 0.31)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ValidationError, match="depths"):
        GenerationMeasurement.model_validate({**generation().model_dump(), "depths": []})
    with pytest.raises(ValidationError, match="driving"):
        LanguageParity.model_validate({**language_parity().model_dump(), "driving": "by hand"})
    with pytest.raises(ValidationError, match="top1_agreement"):
        LanguageParity.model_validate({**language_parity().model_dump(), "top1_agreement": 1.1})
