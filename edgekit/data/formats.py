"""Reads local files of each format into columns of cells, each row with the number a person would count in the file.

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


@dataclass(frozen=True)
class Table:
    """Columns of equal length."""

    columns: dict[str, list[Cell]]
    """Column to its cells; a cell that the row lacks is None."""
    numbers: list[int]
    """Where each row is in the file, counted from 1 in `unit`s."""
    unit: str
    """What `numbers` count: `line`, `item` or `row`."""


def read_file(file: Path, where: str) -> Table:
    """Returns the rows of a .csv, .tsv, .jsonl, .json, .parquet or .txt file; `where` names it in errors.

    A .txt file has one text a line, in the column `text`; blank lines are no rows.

    Raises:
        DataError: an unknown suffix, an empty or malformed file, naming the line.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{where}: found the suffix '{file.suffix}', expected one of {', '.join(_READERS)}.")
    if file.stat().st_size == 0:
        raise DataError(f"{where}: is empty, expected rows.")
    try:
        table = reader(file, where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({error}). Save it as UTF-8.") from error
    if not table.numbers:
        raise DataError(f"{where}: holds no rows.")
    return table


def from_dataset(dataset: Dataset) -> Table:
    """Returns a `datasets` table with class labels replaced by their names."""
    from datasets import ClassLabel

    columns: dict[str, list[Cell]] = {}
    for name, feature in dataset.features.items():
        values = list(dataset[name])
        if isinstance(feature, ClassLabel):
            values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
        columns[name] = values
    return Table(columns, list(range(1, len(dataset) + 1)), "row")


def _read_csv(file: Path, where: str) -> Table:
    return _read_delimited(file, where, ",")


def _read_tsv(file: Path, where: str) -> Table:
    return _read_delimited(file, where, "\t")


def _read_delimited(file: Path, where: str, delimiter: str) -> Table:
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            records = _records(csv.reader(stream, delimiter=delimiter, strict=True), where)
            _, header = next(records, (0, []))
            _check_header(header, where)
            rows: list[list[str]] = []
            numbers: list[int] = []
            for line, record in records:
                if len(record) != len(header):
                    raise DataError(
                        f"{where}, line {line}: found {len(record)} fields, expected {len(header)} as in the header. "
                        "Put quotes around a text that holds the delimiter."
                    )
                rows.append(record)
                numbers.append(line)
    finally:
        csv.field_size_limit(previous_limit)
    columns: dict[str, list[Cell]] = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    return Table(columns, numbers, "line")


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


def _read_json_lines(file: Path, where: str) -> Table:
    objects: list[dict[str, Any]] = []
    numbers: list[int] = []
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except ValueError as error:
                raise DataError(f"{where}, line {line}: is not valid JSON ({error}).") from error
            objects.append(_require_object(value, f"{where}, line {line}"))
            numbers.append(line)
    return _from_objects(objects, numbers, "line")


def _read_json(file: Path, where: str) -> Table:
    """Reads an array of objects; a file of JSON lines under the name .json is taken as that."""
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] != "[":
        return _read_json_lines(file, where)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: is not valid JSON ({error}).") from error
    objects = [_require_object(value, f"{where}, item {item}") for item, value in enumerate(values, start=1)]
    return _from_objects(objects, list(range(1, len(objects) + 1)), "item")


def _require_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{where}: found a {type(value).__name__}, expected an object such as {{"text": ...}}.')
    return value


def _from_objects(objects: list[dict[str, Any]], numbers: list[int], unit: str) -> Table:
    names = list(dict.fromkeys(name for value in objects for name in value))
    return Table({name: [value.get(name) for value in objects] for name in names}, numbers, unit)


def _read_text(file: Path, where: str) -> Table:
    texts: list[Cell] = []
    numbers: list[int] = []
    with file.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if text.strip():
                texts.append(text.rstrip("\n"))
                numbers.append(line)
    return Table({"text": texts}, numbers, "line")


def _read_parquet(file: Path, where: str) -> Table:
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    try:
        return from_dataset(Dataset(parquet.read_table(file)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}: is not a readable parquet file ({reason}).") from error


_READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
