"""Divides the documents that a language model learns from into splits, in memory that hardly grows with their number.

Every source is read twice: once to check each row and keep two 64-bit digests of it, then to copy the chosen rows to
the disk, from where they are written in shuffled order. (Of 10^8 documents, the chance that any two different ones
share a digest, so that one is left out, is 1 in 3,700.)
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.contract import StageContext
from edgekit.data.documents import Document, Form, columns_of, context_of, read_document, schema_of, spelled, to_cells
from edgekit.data.source import DataSource, is_empty, open_rows, spell
from edgekit.data.splitting import text_key
from edgekit.errors import DataError
from edgekit.events import Event
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

    from edgekit.data.formats import Numbered, RowStream

MAIN = "documents"
"""Name of the source that is divided into train, validation and test."""
Digests = NDArray[np.uint64]
Ordinals = NDArray[np.int64]
_BATCH = 1000
_LEAK = "row whose text, or prompt, or first turns are in a split that comes before it"


@dataclass(frozen=True)
class Index:
    """Digests of a source's documents, in file order."""

    whole: Digests
    """Equal for documents that differ in white space alone, `(N,)`."""
    context: Digests
    """Equal for documents with the same text, prompt, or turns before the first answer, `(N,)`."""


@dataclass
class Corpus:
    """Sources of documents, and how the first is divided."""

    sources: dict[str, DataSource]
    """`documents`, and if there are any `unlabelled` and `extra_tests.NAME`."""
    fractions: tuple[float, float]
    """Shares of the documents that go to validation and test."""
    deduplicate: bool
    """Keep the first of documents that differ in white space alone."""
    context: StageContext
    """The seed, and whom to tell."""
    rows_read: dict[str, int] = field(default_factory=dict)
    """Source to the documents chosen from it, before duplicates across splits were left out."""

    rows_empty: dict[str, int] = field(default_factory=dict)
    """Source to the rows that were left out because they have no text."""

    def write(self, directory: Path) -> tuple[dict[str, int], dict[str, Form]]:
        """Writes every split into `directory` and returns split to rows, and to form.

        Raises:
            DataError: a source cannot be read, a row is not a document, or a split would be empty.
        """
        indices = {name: self._index(name) for name in self.sources}
        splits = self._divide(indices)
        sizes: dict[str, int] = {}
        forms: dict[str, Form] = {}
        with tempfile.TemporaryDirectory(prefix=".edgekit-corpus-", dir=directory.parent) as scratch:
            for name in self.sources:
                own = {split: rows for split, (source, rows) in splits.items() if source == name}
                chosen = np.unique(np.concatenate(list(own.values())))
                copy = self._copy(name, chosen, Path(scratch) / f"{name}.arrow")
                for split, rows in own.items():
                    _write_split(copy.select(np.searchsorted(chosen, rows)), directory / f"{split}.parquet")
                    sizes[split], forms[split] = len(rows), self._form(name)
        return sizes, forms

    def _form(self, name: str) -> Form:
        form = self.sources[name].form or self.sources[MAIN].form
        assert form is not None
        return form

    def _documents(self, name: str, text: str) -> Iterator[Document]:
        source = self.sources[name]
        with open_rows(source, offline=self.context.offline) as stream:
            numbered = self._filled(name, _kept_rows(source, stream))
            for count, (number, cells) in enumerate(numbered):
                if count % _BATCH == 0:
                    self._progress(f"{text} {source.source}", count)
                place = f"{source.source}, {stream.unit} {number}"
                yield read_document(cells, self._form(name), source.columns, place)

    def _filled(self, name: str, numbered: Iterator[Numbered]) -> Iterator[Numbered]:
        """Yields the rows that have text, where the source says that others may be left out."""
        columns = columns_of(self._form(name), self.sources[name].columns).values()
        empty = 0
        for number, cells in numbered:
            lacks = any(column in cells and is_empty(cells[column]) for column in columns)
            if self.sources[name].skip_empty and lacks:
                empty += 1
            else:
                yield number, cells
        self.rows_empty[name] = empty

    def _index(self, name: str) -> Index:
        whole, context = array("Q"), array("Q")
        for document in self._documents(name, "reading"):
            whole.append(_digest(spelled(document)))
            context.append(_digest(context_of(document)))
        self._tell(name, self.rows_empty[name], "row without text")
        return Index(np.asarray(whole, dtype=np.uint64), np.asarray(context, dtype=np.uint64))

    def _divide(self, indices: dict[str, Index]) -> dict[str, tuple[str, Ordinals]]:
        """Returns split to its source and its documents in shuffled order; tests go before what is learned from."""
        chosen = {name: self._choose(name, index) for name, index in indices.items()}
        validation, test = self.fractions
        parts = divide(chosen[MAIN], {"test": test, "validation": validation}, self.sources[MAIN].source)
        tests = {name.removeprefix("extra_tests."): name for name in chosen if name.startswith("extra_tests.")}
        planned = {"test": (MAIN, parts["test"])} | {name: (source, chosen[source]) for name, source in tests.items()}
        seen = np.concatenate([indices[source].context[rows] for source, rows in planned.values()])
        learned = {"validation": (MAIN, parts["validation"]), "train": (MAIN, parts["train"])}
        if "unlabelled" in chosen:
            learned["unlabelled"] = ("unlabelled", chosen["unlabelled"])
        for split, (source, rows) in learned.items():
            keys = indices[source].context[rows]
            kept = rows[~np.isin(keys, seen)]
            self._tell(split, len(rows) - len(kept), _LEAK)
            if len(kept) == 0:
                raise DataError(
                    f"{self.sources[source].source}: the split '{split}' is empty after documents of the test and "
                    "validation splits were left out. Give it other rows."
                )
            planned[split] = (source, kept)
            seen = np.concatenate([seen, keys])
        return planned

    def _choose(self, name: str, index: Index) -> Ordinals:
        source = self.sources[name]
        rows = np.arange(len(index.whole))
        if self.deduplicate:
            rows = np.sort(np.unique(index.whole, return_index=True)[1])
            self._tell(name, len(index.whole) - len(rows), "row whose text came before")
        order: Ordinals = np.random.default_rng(self.context.seed).permutation(rows)[source.skip :][: source.max_rows]
        if len(order) == 0:
            raise DataError(
                f"{source.source}: skip = {source.skip} leaves none of its {len(rows)} documents. Skip fewer."
            )
        self.rows_read[name] = len(order)
        return order

    def _copy(self, name: str, chosen: Ordinals, file: Path) -> Dataset:
        """Returns the documents `chosen` (ascending) of a source, in a file that is mapped into memory."""
        import pyarrow
        from datasets import Dataset

        form = self._form(name)
        documents = _pick(self._documents(name, "copying"), chosen)
        count = 0
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema_of(form)) as writer:
            while batch := [to_cells(document) for document in islice(documents, _BATCH)]:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema_of(form)))
                count += len(batch)
        if count != len(chosen):
            raise DataError(f"{self.sources[name].source}: changed while it was read. Prepare the data again.")
        return Dataset.from_file(str(file))

    def _progress(self, text: str, completed: int) -> None:
        self.context.events(Event("progress", stage="prepare", text=text, completed=completed, unit="rows"))

    def _tell(self, name: str, count: int, what: str) -> None:
        if count:
            rows = f"{count:,} {what}" if count == 1 else f"{count:,} {what.replace('row', 'rows', 1)}"
            self.context.events(Event("message", stage="prepare", text=f"{name}: left out {rows}"))


def divide(order: Ordinals, fractions: dict[str, float], where: str) -> dict[str, Ordinals]:
    """Returns `order` cut into the named splits and `train`, which gets what remains; each gets at least one.

    Raises:
        DataError: there are fewer documents than splits.
    """
    if len(order) < len(fractions) + 1:
        raise DataError(
            f"{where}: found {len(order)} different documents, expected at least {len(fractions) + 1}, one for each of "
            f"{', '.join(fractions)} and train."
        )
    parts: dict[str, Ordinals] = {}
    rest = order
    for place, (name, fraction) in enumerate(fractions.items()):
        most = len(rest) - (len(fractions) - place)  # every split that is still to come needs one
        count = min(max(1, round(fraction * len(order))), most)
        parts[name], rest = rest[:count], rest[count:]
    return parts | {"train": rest}


def _kept_rows(source: DataSource, stream: RowStream) -> Iterator[Numbered]:
    """Yields the rows whose columns hold what `where` says."""
    kept = False
    seen: dict[str, dict[str, None]] = {name: {} for name in source.where}
    for number, cells in stream.read():
        for name in source.where:
            if name not in cells:
                known = ", ".join(f"'{column}'" for column in cells)
                raise DataError(
                    f"{source.source}, {stream.unit} {number}: where.{name}: no column '{name}'."
                    f"{did_you_mean(name, cells)} Columns: {known}."
                )
            if len(seen[name]) < _SHOWN_VALUES:
                seen[name][str(spell(cells[name]))] = None
        if all(spell(cells[name]) == spell(wanted) for name, wanted in source.where.items()):
            kept = True
            yield number, cells
    if not kept:
        wanted = ", ".join(f"{name} = '{value}'" for name, value in source.where.items())
        found = "; ".join(f"{name}: {', '.join(map(repr, values))}" for name, values in seen.items())
        raise DataError(f"{source.source}: where: no row holds {wanted}. Found, among others: {found}.")


_SHOWN_VALUES = 10


def _pick(documents: Iterable[Document], chosen: Ordinals) -> Iterator[Document]:
    wanted = iter(chosen.tolist())
    following = next(wanted, None)
    for ordinal, document in enumerate(documents):
        if ordinal == following:
            yield document
            following = next(wanted, None)


def _write_split(rows: Dataset, file: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    schema = rows.data.schema.remove_metadata()
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in rows.with_format("arrow").iter(_BATCH):
            writer.write_table(pyarrow.Table.from_batches(batch.to_batches(), schema=schema))


def _digest(parts: tuple[str, ...]) -> int:
    key = "\0".join(text_key(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
