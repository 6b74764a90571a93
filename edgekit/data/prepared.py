"""Reads prepared data: the splits of a `data` artifact, each a parquet file of texts and labels.

Only pyarrow is needed. Where the rows came from and how they were split is `data/stage.py`'s matter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from edgekit.artifact import Artifact
from edgekit.errors import DataError
from edgekit.spelling import did_you_mean

DATA_FILE = "data.json"


@dataclass(frozen=True)
class Split:
    """Rows of one split, in file order."""

    name: str
    """Name of the split, for example `train`."""
    texts: list[str]
    """One text a row."""
    labels: list[int] | None
    """One index into `PreparedData.labels` a row; None for unlabelled text."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.texts)


class DataDescription(BaseModel):
    """The content of `data.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: list[str]
    """Names of the classes, in the order of the label indices."""
    splits: dict[str, int]
    """Split to its number of rows."""
    sources: list[dict[str, JsonValue]] = []
    """The sources that the rows were read from."""


@dataclass(frozen=True)
class PreparedData:
    """A `data` artifact, opened; a split is read when it is asked for."""

    path: Path
    """Directory of the artifact."""
    labels: list[str]
    """Names of the classes, in the order of the label indices."""
    rows: dict[str, int]
    """Split to its number of rows."""

    @classmethod
    def open(cls, data: Artifact) -> PreparedData:
        """Returns `data` without reading any rows.

        Raises:
            DataError: `data.json` is missing or not valid.
        """
        file = data.path / DATA_FILE
        if not file.is_file():
            raise DataError(f"{file}: missing; expected data that `edgekit prepare` wrote.")
        try:
            description = DataDescription.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise DataError(f"{file}: not valid ({error.errors()[0]['msg']}). Prepare the data again.") from error
        return cls(data.path, description.labels, description.splits)

    def split(self, name: str) -> Split:
        """Returns the rows of a split.

        Raises:
            DataError: there is no split of that name.
        """
        if name not in self.rows:
            known = ", ".join(sorted(self.rows))
            raise DataError(f"{self.path}: no split '{name}'.{did_you_mean(name, self.rows)} Splits: {known}.")
        import pyarrow.parquet as parquet

        table = parquet.read_table(self.path / f"{name}.parquet", memory_map=True)
        labels = table.column("label").to_pylist() if "label" in table.column_names else None
        return Split(name, table.column("text").to_pylist(), labels)


def write_split(directory: Path, split: Split) -> None:
    """Writes `<name>.parquet` with the columns `text` (string) and `label` (int64; absent when unlabelled)."""
    import pyarrow
    import pyarrow.parquet as parquet

    columns: dict[str, object] = {"text": pyarrow.array(split.texts, pyarrow.string())}
    if split.labels is not None:
        columns["label"] = pyarrow.array(split.labels, pyarrow.int64())
    parquet.write_table(pyarrow.table(columns), directory / f"{split.name}.parquet", compression="zstd")


def write_description(directory: Path, description: DataDescription) -> None:
    """Writes `data.json` into `directory`."""
    text = json.dumps(description.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (directory / DATA_FILE).write_text(text + "\n", encoding="utf-8")
