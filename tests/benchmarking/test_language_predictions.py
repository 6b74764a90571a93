"""The stage `evaluate` on language models, against a loop over the model in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from edgekit.artifact import Artifact
from edgekit.benchmarking.result_files import read_quality
from edgekit.benchmarking.stage import EvaluateConfig, evaluate
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.errors import DataError, ModelError
from edgekit.models.source import load_model
from edgekit.results import LanguageQuality
from tests.distillation.training import poisoned_decoder
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Artifact]:
    place = tmp_path_factory.mktemp("language")
    model = publish_model(pico_decoder("llama", seed=1), place / "model")
    teacher = publish_model(pico_decoder("llama", seed=2), place / "teacher")
    return model, teacher, pico_language_data(place, documents=60)


def quality_of(inputs: StageInputs, out: Path, **settings: object) -> LanguageQuality:
    found = read_quality(evaluate(inputs, EvaluateConfig(**settings), StageContext(out)))
    assert isinstance(found, LanguageQuality)
    return found


def test_perplexity_and_divergence_are_those_of_float64(
    made: tuple[Artifact, Artifact, Artifact], tmp_path: Path
) -> None:
    model, teacher, data = made
    found = quality_of(StageInputs(model=model, teacher=teacher, data=data), tmp_path / "out", max_tokens=20)
    own, other = load_model(model), load_model(teacher)
    losses, divergences = [], []
    for document in PreparedData.open(data).documents("test"):
        ids = torch.tensor([own.tokenizer(document.text)["input_ids"][:20]])
        with torch.inference_mode():
            logs = own.model.double()(input_ids=ids).logits[0, :-1].log_softmax(-1)
            aims = other.model.double()(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses += (-logs.gather(1, ids[0, 1:, None])[:, 0]).tolist()
        divergences += (aims.exp() * (aims - logs)).sum(1).tolist()
    assert found.tokens == len(losses)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found.divergence == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_a_model_is_no_distance_from_itself(made: tuple[Artifact, Artifact, Artifact], tmp_path: Path) -> None:
    model, _, data = made
    inputs = StageInputs(model=model, teacher=model, data=data)
    found = quality_of(inputs, tmp_path / "out", splits=["validation", "test"], max_rows=3)
    assert found.perplexity_ratio == pytest.approx(1)
    assert found.teacher_agreement == 1
    assert [part.documents for part in found.parts.values()] == [3, 3]


def test_without_a_teacher_nothing_is_compared(made: tuple[Artifact, Artifact, Artifact], tmp_path: Path) -> None:
    found = quality_of(StageInputs(model=made[0], data=made[2]), tmp_path / "out", max_rows=2)
    assert found.perplexity_ratio is None
    assert found.documents == 2


def test_an_unknown_split_is_refused(made: tuple[Artifact, Artifact, Artifact], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'tset'"):
        quality_of(StageInputs(model=made[0], data=made[2]), tmp_path / "out", splits=["tset"])


@pytest.mark.parametrize("who", ["model", "teacher"])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_row_and_leaves_nothing(
    made: tuple[Artifact, Artifact, Artifact], tmp_path: Path, who: str
) -> None:
    model, teacher, data = made
    broken = poisoned_decoder(tmp_path / "broken")
    inputs = StageInputs(**{"model": model, "teacher": teacher, "data": data, who: broken})
    with pytest.raises(ModelError, match=rf"split 'test', row \d+ .*: found logits of the {who} that are not finite"):
        quality_of(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
