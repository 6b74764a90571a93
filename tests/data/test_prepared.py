from pathlib import Path

import pytest

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.data.prepared import DataDescription, PreparedData, Split, write_description, write_split
from edgekit.errors import DataError
from tests.pico import pico_data_artifact


def test_splits_are_read_as_they_were_written(tmp_path: Path) -> None:
    split = Split("train", ["a \u4e2d\n\0", "b"], [1, 0], ["a.csv, line 7", "a.csv, line 2"])
    unlabelled = Split("unlabelled", ["c"], None)
    with publish(tmp_path / "data", kind="data", lineage=Lineage(stage="source")) as staging:
        write_split(staging, split)
        write_split(staging, unlabelled)
        write_description(staging, DataDescription(labels=["x", "y"], splits={"train": 2, "unlabelled": 1}))
    data = PreparedData.open(Artifact.open(tmp_path / "data"))
    assert data.labels == ["x", "y"]
    assert data.split("train") == split
    assert data.split("unlabelled") == unlabelled
    assert len(data.split("train")) == 2


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    data = PreparedData.open(pico_data_artifact(tmp_path, rows=40))
    with pytest.raises(
        DataError, match=r"no split 'vlidation'. Did you mean 'validation'\? Splits: test, train, validation"
    ):
        data.split("vlidation")


def test_a_missing_or_damaged_description_is_named(tmp_path: Path) -> None:
    artifact = pico_data_artifact(tmp_path, rows=40)
    file = artifact.path / "data.json"
    file.write_text('{"labels": 3}', encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.json: not valid"):
        PreparedData.open(artifact)
    file.unlink()
    with pytest.raises(DataError, match=r"data\.json: missing; expected data that `edgekit prepare` wrote"):
        PreparedData.open(artifact)
