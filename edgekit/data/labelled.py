"""Divides labelled text for a classifier into splits: held in memory, each class in the same proportion everywhere.

What a language model reads is divided in `corpus.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekit.contract import StageContext
from edgekit.data.prepared import Split, write_split
from edgekit.data.source import DataSource, portable_name, read_table
from edgekit.data.splitting import Dropped, Rows, check_classes, deduplicate, keys_of, stratify, without
from edgekit.errors import DataError
from edgekit.events import Event
from edgekit.spelling import did_you_mean

MAIN = "labelled"
"""Name of the source that is divided into train, validation and test."""
_LEAKS_FROM = {
    "validation": "a test split",
    "train": "a test split or in validation",
    "unlabelled": "another split",
}


@dataclass
class LabelledText:
    """Sources of labelled text, and how the first is divided."""

    sources: dict[str, DataSource]
    """`labelled`, and if there are any `unlabelled` and `extra_tests.NAME`."""
    labels: list[str]
    """Names of the classes."""
    fractions: tuple[float, float]
    """Shares of the rows that go to validation and test."""
    deduplicate: bool
    """Keep one row of those that differ in white space alone, and none of those that disagree on the label."""
    context: StageContext
    """The seed, and whom to tell."""
    rows_read: dict[str, int] = field(default_factory=dict)
    """Source to the rows read from it."""

    def write(self, directory: Path) -> dict[str, int]:
        """Writes every split into `directory` and returns split to rows.

        Raises:
            DataError: a source cannot be read, a row has no text or a wrong label, or a split would be empty.
        """
        splits = self._divide()
        for name, rows in splits.items():
            write_split(directory, Split(name, rows.texts, rows.labels, rows.places))
        return {name: len(rows) for name, rows in splits.items()}

    def _divide(self) -> dict[str, Rows]:
        """Returns the splits; what is judged on goes before what is learned from."""
        read = {name: self._read(name, source) for name, source in self.sources.items()}
        validation_share, test_share = self.fractions
        fractions = {"test": test_share, "validation": validation_share, "train": 1 - test_share - validation_share}
        try:
            parts = stratify(read[MAIN], fractions, self.labels, self.context.seed)
        except DataError as error:
            raise DataError(f"{self.sources[MAIN].source}: {error}") from error
        extra = {name.removeprefix(_EXTRA): rows for name, rows in read.items() if name.startswith(_EXTRA)}
        leaks: dict[str, int] = {}
        unseen = keys_of(parts["test"], *extra.values())
        validation, leaks["validation"] = without(parts["validation"], unseen)
        unseen |= keys_of(validation)
        train, leaks["train"] = without(parts["train"], unseen)
        splits = {"train": train, "validation": validation, "test": parts["test"]}
        if "unlabelled" in read:
            unseen |= keys_of(train)
            splits["unlabelled"], leaks["unlabelled"] = without(read["unlabelled"], unseen)
        splits |= extra
        for name, count in leaks.items():
            self._tell(name, count, f"whose text is in {_LEAKS_FROM[name]}")
        self._check_splits(splits)
        return splits

    def _read(self, name: str, source: DataSource) -> Rows:
        """Returns the rows of one source, deduplicated."""
        labelled = name != "unlabelled"
        self.context.events(Event("progress", stage="prepare", text=f"reading {source.source}", unit="rows"))
        table = read_table(source, seed=self.context.seed, labelled=labelled, offline=self.context.offline)
        labels = None
        if labelled:
            labels = _label_indices(source, list(table["label"]), list(table["place"]), self.labels)
        file = portable_name(source)
        rows = Rows(list(table["text"]), labels, [f"{file}, {place}" for place in table["place"]])
        self.rows_read[name] = len(rows)
        if self.deduplicate:
            rows, dropped = deduplicate(rows)
            self._report_duplicates(name, dropped)
        return rows

    def _check_splits(self, splits: dict[str, Rows]) -> None:
        """Refuses an empty split, and labelled splits that lack a class."""
        for name, rows in splits.items():
            if len(rows) == 0:
                raise DataError(
                    f"{self.sources[MAIN].source}: the split '{name}' is empty after duplicates and texts of the test "
                    "and validation splits were left out. Give it other rows."
                )
            if rows.labels is not None:
                source = self.sources.get(f"{_EXTRA}{name}", self.sources[MAIN]).source
                try:
                    check_classes(rows.labels, self.labels, at_least=1)
                except DataError as error:
                    raise DataError(f"{source}: split '{name}': {error}") from error

    def _report_duplicates(self, name: str, dropped: Dropped) -> None:
        self._tell(name, dropped.duplicates, "whose text came before")
        self._tell(name, dropped.conflicts, "whose text carries different labels")

    def _tell(self, name: str, count: int, which: str) -> None:
        if count:
            rows = f"{count:,} row" + ("" if count == 1 else "s")
            self.context.events(Event("message", stage="prepare", text=f"{name}: left out {rows} {which}"))


_EXTRA = "extra_tests."
_SHOWN_LABELS = 10


def _label_indices(source: DataSource, found: list[str], places: list[str], labels: list[str]) -> list[int]:
    """Returns the index of each row's label; `places` say where the rows, which are shuffled, are in their file."""
    index_of = {label: index for index, label in enumerate(labels)}
    unknown = [row for row, label in enumerate(found) if label not in index_of]
    if unknown:
        in_file = sorted(range(len(found)), key=lambda row: _number_of(places[row]))
        first = min(unknown, key=lambda row: _number_of(places[row]))
        raise DataError(
            f"{source.source}, {places[first]}, column '{source.columns.label}': found the label {found[first]!r}, "
            f"which the task does not have; expected one of {labels}.{did_you_mean(found[first], labels)} Map each "
            f"label of the file to one of those: {_blank_map([found[row] for row in in_file], labels)}; or choose rows "
            "with `where`, or add it to the labels."
        )
    return [index_of[label] for label in found]


def _number_of(place: str) -> int:
    """Returns the number in a place such as `line 12`."""
    return int(place.rpartition(" ")[2])


def _blank_map(found: list[str], labels: list[str]) -> str:
    """Returns a `label_map` to fill in: which label stands for which only a person knows."""
    values = list(dict.fromkeys(found))
    entries = [f'"{value}" = "{value if value in labels else "..."}"' for value in values[:_SHOWN_LABELS]]
    return f"label_map = {{ {', '.join(entries)}{', ...' if len(values) > _SHOWN_LABELS else ''} }}"
