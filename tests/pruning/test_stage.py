import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import DataDescription, Split, write_description, write_split
from edgekit.errors import DataError, EdgekitError, UnsupportedError, UsageError
from edgekit.events import Event
from edgekit.models.quantized import Scheme, install
from edgekit.models.source import load_model
from edgekit.models.structure import find_layers
from edgekit.pruning.layers import skip_layers
from edgekit.pruning.stage import PruneConfig, PruneReport, prune
from edgekit.pruning.vocabulary import read_vocabulary
from tests.pico import (
    ARCHITECTURES,
    MAX_LENGTH,
    pico_data_artifact,
    pico_loaded,
    pico_model_artifact,
    pico_texts,
    publish_model,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pico_data_artifact(tmp_path_factory.mktemp("data"), rows=120, unlabelled=60)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pico_model_artifact(tmp_path_factory.mktemp("teacher"))


def report_of(model: Artifact) -> PruneReport:
    return PruneReport.model_validate_json((model.path / "prune.json").read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_saved_student_computes_what_the_teacher_does_without_those_layers(
    architecture: str, tmp_path: Path, data: Artifact
) -> None:
    model = pico_model_artifact(tmp_path, architecture=architecture)
    has_positions = architecture not in ("deberta-v2", "modernbert")
    size = {"roberta": 400, "modernbert": 400, "xlm-roberta": 120, "albert": 120, "deberta-v2": 120}.get(
        architecture, 150
    )
    config = PruneConfig(keep_layers=[0, 3], vocabulary_size=size, max_positions=MAX_LENGTH if has_positions else None)
    out = prune(StageInputs(model=model, data=data), config, StageContext(tmp_path / "out"))
    before, after = load_model(model), load_model(out)
    assert type(after.tokenizer) is type(before.tokenizer)
    assert after.model.config.vocab_size == len(after.tokenizer) == size
    assert after.tokenizer.model_max_length == (MAX_LENGTH if has_positions else 64)

    texts = pico_texts(150, seed=5)[0]
    texts = [text for text in texts if before.tokenizer.tokenize(text) == after.tokenizer.tokenize(text)][:10]
    assert len(texts) >= 3
    settings = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": MAX_LENGTH}
    with torch.no_grad(), skip_layers(before.model, [0, 3]):
        expected = before.model(**before.tokenizer(texts, **settings)).logits
    with torch.no_grad():
        found = after.model(**after.tokenizer(texts, **settings)).logits
    # Weights read from a file lie otherwise in memory, so the last bit of a sum may differ.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    report = report_of(out)
    assert report.layers_kept == [0, 3]
    assert (report.vocabulary_before, report.vocabulary_after) == (len(before.tokenizer), size)
    assert report.positions_after == (MAX_LENGTH if has_positions else None)
    assert report.parameters_after < report.parameters_before
    assert 0.3 < report.coverage["train"] < 1
    assert set(report.coverage) == {"train", "unlabelled"}


def test_equal_inputs_give_equal_bytes_and_the_lineage_says_what_was_done(
    tmp_path: Path, teacher: Artifact, data: Artifact
) -> None:
    config = PruneConfig(layers=2, choose="influence", min_count=3)
    inputs = StageInputs(model=teacher, data=data)
    torch.manual_seed(1)
    first = prune(inputs, config, StageContext(tmp_path / "first", seed=7))
    torch.manual_seed(2)
    second = prune(inputs, config, StageContext(tmp_path / "second", seed=7))
    assert first.digest == second.digest
    assert first.lineage.stage == "prune"
    assert first.lineage.config["layers"] == 2
    assert set(first.lineage.inputs) == {"model", "data"}
    assert stat.S_IMODE((first.path / "prune.json").stat().st_mode) & 0o444 == 0o444


def test_the_most_influential_layers_stay(tmp_path: Path, teacher: Artifact, data: Artifact) -> None:
    config = PruneConfig(layers=2, choose="influence", calibration_rows=20)
    out = prune(StageInputs(model=teacher, data=data), config, StageContext(tmp_path / "out"))
    report = report_of(out)
    assert report.block_influence is not None
    ranked = sorted(range(4), key=lambda layer: -report.block_influence[layer])
    assert report.layers_kept == sorted(ranked[:2])
    assert report.coverage == {}
    assert len(find_layers(load_model(out).model).layers) == 2


def test_neurons_are_measured_on_what_is_left_of_the_layers(tmp_path: Path, teacher: Artifact, data: Artifact) -> None:
    config = PruneConfig(keep_layers=[1, 3], intermediate_size=12, calibration_rows=20)
    out = prune(StageInputs(model=teacher, data=data), config, StageContext(tmp_path / "out"))
    report = json.loads((out.path / "prune.json").read_text())
    assert (report["intermediate_after"], report["layers_kept"]) == (12, [1, 3])
    assert load_model(out).model.config.intermediate_size == 12


def test_layers_alone_need_no_data_and_the_first_of_two_halves_goes(tmp_path: Path, teacher: Artifact) -> None:
    out = prune(StageInputs(model=teacher), PruneConfig(layers=2), StageContext(tmp_path / "out"))
    assert report_of(out).layers_kept == [1, 3]
    assert (
        load_model(out).tokenizer("a good film")["input_ids"]
        == load_model(teacher).tokenizer("a good film")["input_ids"]
    )


def test_rare_tokens_go_and_counted_splits_can_be_named(tmp_path: Path, teacher: Artifact, data: Artifact) -> None:
    inputs = StageInputs(model=teacher, data=data)
    kept = {
        count: len(
            load_model(prune(inputs, PruneConfig(min_count=count), StageContext(tmp_path / str(count)))).tokenizer
        )
        for count in (1, 12, 10**9)
    }
    assert kept[1] > kept[12] > kept[10**9] == len(read_vocabulary(load_model(teacher).tokenizer).required)
    named = PruneConfig(min_count=1, splits_counted=["validation"])
    out = prune(inputs, named, StageContext(tmp_path / "named"))
    assert report_of(out).coverage == {"validation": 1.0}


def test_progress_and_the_outcome_are_told(tmp_path: Path, teacher: Artifact, data: Artifact) -> None:
    events: list[Event] = []
    config = PruneConfig(layers=2, choose="influence", vocabulary_size=120, max_positions=40)
    prune(StageInputs(model=teacher, data=data), config, StageContext(tmp_path / "out", events=events.append))
    counting = [event for event in events if event.text == "counting tokens"]
    assert (counting[-1].completed, counting[-1].total, counting[-1].unit) == (132, 132, "texts")
    assert [event for event in events if event.text == "measuring layers"][-1].completed > 0
    outcome = [event for event in events if event.kind == "message"][-1]
    assert "layers" in outcome.text
    assert "vocabulary 168 -> 120" in outcome.text
    assert "positions 64 -> 40" in outcome.text
    assert outcome.values["parameters"] == report_of(Artifact.open(tmp_path / "out")).parameters_after
    assert 0 < outcome.values["coverage_train"] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "nothing to prune. Set at least one of layers, keep_layers, intermediate_size, vocabulary_size, min_count",
        ),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"keep_layers": []}, "expected distinct indices"),
        ({"keep_layers": [1, 1]}, "expected distinct indices"),
        ({"keep_layers": [-1]}, "expected distinct indices"),
        ({"layers": 1, "keep_layers": [1]}, "layers and keep_layers are both set"),
        ({"keep_layers": [0], "choose": "influence"}, "choose = 'influence' needs layers"),
        ({"min_count": 2, "choose": "influence"}, "choose = 'influence' needs layers"),
        ({"layers": 1, "splits_counted": ["train"]}, "splits_counted names splits to count"),
        ({"min_count": 0}, "greater than or equal to 1"),
        ({"layer": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneConfig(**settings)


def test_every_setting_is_documented_for_the_command_line() -> None:
    assert all(field.description for field in PruneConfig.model_fields.values())


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (PruneConfig(layers=5), UsageError, "layers: found 5, expected 1 to 4"),
        (PruneConfig(intermediate_size=9999), UsageError, "intermediate_size: found 9999, expected 1 to"),
        (
            PruneConfig(keep_layers=[2, 4]),
            UsageError,
            r"keep_layers: found \[2, 4\], expected distinct indices from 0 to 3",
        ),
        (PruneConfig(vocabulary_size=10), UsageError, r"vocabulary_size: found 10, expected 90 \(single"),
        (PruneConfig(vocabulary_size=999), UsageError, "to 168 .all tokens of the model"),
        (PruneConfig(max_positions=31), UsageError, "max_positions: found 31, expected at least 32, the tokens that a"),
        (PruneConfig(max_positions=65), UsageError, "max_positions: found 65, expected 1 to 64"),
        (PruneConfig(min_count=1, splits_counted=["tran"]), DataError, "no split 'tran'. Did you mean 'train'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_nothing_is_left(
    tmp_path: Path, teacher: Artifact, data: Artifact, config: PruneConfig, error: type[EdgekitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        prune(StageInputs(model=teacher, data=data), config, StageContext(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [PruneConfig(min_count=1), PruneConfig(layers=1, choose="influence"), PruneConfig(intermediate_size=8)],
)
def test_data_that_is_needed_and_not_given_is_asked_for(tmp_path: Path, teacher: Artifact, config: PruneConfig) -> None:
    with pytest.raises(UsageError, match="prune: needs a data artifact"):
        prune(StageInputs(model=teacher), config, StageContext(tmp_path / "out"))


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    loaded = pico_loaded()
    install(loaded.model, {"classifier": Scheme()})
    model = publish_model(loaded, tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"the model is quantized \(1 modules, first 'classifier'\).*before"):
        prune(StageInputs(model=model), PruneConfig(layers=1), StageContext(tmp_path / "out"))


def test_the_report_file_is_plain_json(tmp_path: Path, teacher: Artifact) -> None:
    out = prune(StageInputs(model=teacher), PruneConfig(keep_layers=[2]), StageContext(tmp_path / "out"))
    content = json.loads((out.path / "prune.json").read_text())
    assert content["layers_kept"] == [2]
    assert content["vocabulary_before"] == content["vocabulary_after"] == 168


@pytest.mark.parametrize("rows", [12, 256])
def test_a_calibration_text_without_tokens_is_named_by_its_row_in_the_split(
    tmp_path: Path, teacher: Artifact, rows: int
) -> None:
    texts, labels = pico_texts(40)
    texts[33] = "\u200b"
    places = [f"reviews.csv, line {line}" for line in range(2, 42)]
    with publish(tmp_path / "data", kind="data", lineage=Lineage(stage="source")) as staging:
        write_split(staging, Split("train", texts, labels, places))
        write_description(staging, DataDescription(labels=["negative", "positive"], splits={"train": 40}))
    inputs = StageInputs(model=teacher, data=Artifact.open(tmp_path / "data"))
    config = PruneConfig(layers=2, choose="influence", calibration_rows=rows)
    seed = next(
        seed for seed in range(99) if 33 in np.random.default_rng(seed).choice(40, min(rows, 40), replace=False)
    )
    with pytest.raises(DataError, match=r"split 'train', row 33 \(reviews\.csv, line 35\): found a text without any"):
        prune(inputs, config, StageContext(tmp_path / "out", seed=seed))
