"""Reads local files of each format row by row, each with the number a person would count in the file.

The text formats are parsed by the standard library rather than by pandas, which takes "NA" for a missing value,
fills short rows and shifts columns without a word. What a column means is not known here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Cell = str | int | float | bool | None
Numbered = tuple[int, dict[str, Any]]
"""Where a row is in its file, counted from 1 in `unit`s, and its columns."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length."""

    columns: dict[str, list[Cell]]
    """Column to its cells; a cell that the row lacks is None."""
    numbers: list[int]
    """Where each row is in the file, counted from 1 in `unit`s."""
    unit: str
    """What `numbers` count: `line`, `item` or `row`."""


@dataclass(frozen=True)
class RowStream:
    """The rows of a source, which may be read again and again."""

    unit: str
    """What a row's number counts: `line`, `item` or `row`."""
    read: Callable[[], Iterator[Numbered]]
    """Starts at the first row; holds one row, or one batch of them, at a time."""


def collect(stream: RowStream) -> Table:
    """Returns all rows of a stream in memory."""
    numbers: list[int] = []
    columns: dict[str, list[Cell]] = {}
    for number, cells in stream.read():
        for name in cells:
            if name not in columns:
                columns[name] = [None] * len(numbers)
        for name, values in columns.items():
            values.append(cells.get(name))
        numbers.append(number)
    return Table(columns, numbers, stream.unit)


def stream_file(file: Path, where: str) -> RowStream:
    """Returns the rows of a .csv, .tsv, .jsonl, .json, .parquet or .txt file; `where` names it in errors.

    A .txt file has one text a line, in the column `text`; blank lines are no rows. All but a .json array is read in
    constant memory.

    Raises:
        DataError: an unknown suffix or an empty file; and, while it is read, a malformed one, naming the line.
    """
    if file.suffix.lower() not in _READERS:
        raise DataError(f"{where}: found the suffix '{file.suffix}', expected one of {', '.join(_READERS)}.")
    if file.stat().st_size == 0:
        raise DataError(f"{where}: is empty, expected rows.")
    unit, reader = _READERS[file.suffix.lower()]
    if file.suffix.lower() == ".json" and not _is_array(file):
        unit, reader = _READERS[".jsonl"]

    def read() -> Iterator[Numbered]:
        empty = True
        try:
            for row in reader(file, where):
                empty = False
                yield row
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: is not UTF-8 text ({error}). Save it as UTF-8.") from error
        if empty:
            raise DataError(f"{where}: holds no rows, expected at least one. Check that it is the right file.")

    return RowStream(unit, read)


def stream_dataset(dataset: Dataset) -> Iterator[Numbered]:
    """Yields the rows of a `datasets` table with class labels replaced by their names."""
    from datasets import ClassLabel

    classes = {name: feature for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    for number, row in enumerate(dataset, start=1):
        for name, feature in classes.items():
            value = row[name]
            row[name] = None if value is None or value < 0 else feature.int2str(value)
        yield number, row


def _read_csv(file: Path, where: str) -> Iterator[Numbered]:
    return _read_delimited(file, where, ",")


def _read_tsv(file: Path, where: str) -> Iterator[Numbered]:
    return _read_delimited(file, where, "\t")


def _read_delimited(file: Path, where: str, delimiter: str) -> Iterator[Numbered]:
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            records = _records(csv.reader(stream, delimiter=delimiter, strict=True), where)
            _, header = next(records, (0, []))
            _check_header(header, where)
            for line, record in records:
                if len(record) != len(header):
                    raise DataError(
                        f"{where}, line {line}: found {len(record)} fields, expected {len(header)} as in the header. "
                        "Put quotes around a text that holds the delimiter."
                    )
                yield line, dict(zip(header, record, strict=True))
    finally:
        csv.field_size_limit(previous_limit)


def _records(reader: Any, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each record that is not blank with the line it starts on."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{where}, line {line}: is not valid ({error}). Check its quotes.") from error
        if record:
            yield line, record


def _check_header(header: list[str], where: str) -> None:
    if not any(name.strip() for name in header):
        raise DataError(f"{where}: is empty, expected a header line with the names of the columns.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{where}: its header names the column '{repeated[0]}' more than once.")


def _read_json_lines(file: Path, where: str) -> Iterator[Numbered]:
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except ValueError as error:
                raise DataError(f"{where}, line {line}: is not valid JSON ({error}).") from error
            yield line, _require_object(value, f"{where}, line {line}")


def _is_array(file: Path) -> bool:
    """True for a .json file of one array; False for JSON lines under that name."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        first = next((line.lstrip() for line in stream if line.strip()), "")
    return first[:1] == "["


def _read_json(file: Path, where: str) -> Iterator[Numbered]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: is not valid JSON ({error}).") from error
    for item, value in enumerate(values, start=1):
        yield item, _require_object(value, f"{where}, item {item}")


def _require_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{where}: found a {type(value).__name__}, expected an object such as {{"text": ...}}.')
    return value


def _read_text(file: Path, where: str) -> Iterator[Numbered]:
    with file.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if text.strip():
                yield line, {"text": text.rstrip("\n")}


def _read_parquet(file: Path, where: str) -> Iterator[Numbered]:
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    before = 0
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_BATCH):
                for number, row in stream_dataset(Dataset(pyarrow.Table.from_batches([batch]))):
                    yield before + number, row
                before += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}: is not a readable parquet file ({reason}).") from error


_BATCH = 1000
_READERS: dict[str, tuple[str, Callable[[Path, str], Iterator[Numbered]]]] = {
    ".csv": ("line", _read_csv),
    ".tsv": ("line", _read_tsv),
    ".jsonl": ("line", _read_json_lines),
    ".json": ("item", _read_json),
    ".parquet": ("row", _read_parquet),
    ".txt": ("line", _read_text),
}
