"""Reads prepared data: the splits of a `data` artifact, each a parquet file of texts and labels, or of documents.

Only pyarrow is needed. Where the rows came from and how they were split is `data/stage.py`'s matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from edgekit.artifact import Artifact
from edgekit.data.documents import Document, Form, from_cells, words_of
from edgekit.errors import DataError
from edgekit.spelling import did_you_mean

DATA_FILE = "data.json"
_BATCH = 1000


@dataclass(frozen=True)
class Split:
    """Rows of one split, in file order."""

    name: str
    """Name of the split, for example `train`."""
    texts: list[str]
    """One text a row."""
    labels: list[int] | None
    """One index into `PreparedData.labels` a row; None for unlabelled text."""
    places: list[str] | None = None
    """Where each row was read, such as `reviews.csv, line 12`; None where the data does not say."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.texts)

    def row_name(self, row: int) -> str:
        """Returns what a message calls a row, counted from 0: `row 5 (reviews.csv, line 12)`."""
        return f"row {row}" + ("" if self.places is None else f" ({self.places[row]})")


class DataDescription(BaseModel):
    """The content of `data.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: list[str]
    """Names of the classes, in the order of the label indices."""
    splits: dict[str, int]
    """Split to its number of rows."""
    forms: dict[str, Form] = {}
    """Split to what a language model reads in a row; empty for a classifier's data."""
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
    forms: dict[str, Form]
    """Split to what a language model reads in a row; empty for a classifier's data."""
    digest: str
    """Digest of the artifact."""

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
        return cls(data.path, description.labels, description.splits, description.forms, data.digest)

    def split(self, name: str) -> Split:
        """Returns the rows of a split; a conversation as its words, without a template.

        Raises:
            DataError: there is no split of that name.
        """
        file = self._file(name)
        if self.forms.get(name, "text") != "text":
            return Split(name, [words_of(document) for document in self.documents(name)], None)
        import pyarrow.parquet as parquet

        table = parquet.read_table(file, memory_map=True)
        columns = {column: table.column(column).to_pylist() for column in table.column_names}
        return Split(name, columns["text"], columns.get("label"), columns.get("place"))

    def documents(self, name: str) -> Iterator[Document]:
        """Yields what a language model learns from, in file order, with a few rows in memory at a time.

        Raises:
            DataError: there is no split of that name, or its rows are labelled text for a classifier.
        """
        file = self._file(name)
        if name not in self.forms:
            raise DataError(
                f"{self.path}: split '{name}' holds labelled text, expected documents for a language model. "
                "Prepare the data with form = 'text', 'chat' or 'prompt-completion' and without labels."
            )
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(file, memory_map=True) as opened:
            for batch in opened.iter_batches(_BATCH):
                for cells in batch.to_pylist():
                    yield from_cells(cells, self.forms[name])

    def _file(self, name: str) -> Path:
        if name not in self.rows:
            known = ", ".join(sorted(self.rows))
            raise DataError(f"{self.path}: no split '{name}'.{did_you_mean(name, self.rows)} Splits: {known}.")
        return self.path / f"{name}.parquet"


def write_split(directory: Path, split: Split) -> None:
    """Writes `<name>.parquet`: `text` (string), `label` (int64; absent when unlabelled), `place` (string; if known)."""
    import pyarrow
    import pyarrow.parquet as parquet

    columns: dict[str, object] = {"text": pyarrow.array(split.texts, pyarrow.string())}
    if split.labels is not None:
        columns["label"] = pyarrow.array(split.labels, pyarrow.int64())
    if split.places is not None:
        columns["place"] = pyarrow.array(split.places, pyarrow.string())
    parquet.write_table(pyarrow.table(columns), directory / f"{split.name}.parquet", compression="zstd")


def write_description(directory: Path, description: DataDescription) -> None:
    """Writes `data.json` into `directory`."""
    unused = set() if description.forms else {"forms"}
    text = json.dumps(description.model_dump(mode="json", exclude=unused), indent=2, ensure_ascii=False)
    (directory / DATA_FILE).write_text(text + "\n", encoding="utf-8")
