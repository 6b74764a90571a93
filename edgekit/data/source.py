"""Where text comes from: a hub id, a file, or a file of an installed package, with columns mapped and rows chosen.

`read_table` gives checked rows. How rows are split and labelled for a task is `data/stage.py`'s matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from edgekit import hub
from edgekit.artifact import hash_file, hash_json
from edgekit.contract import StageConfig
from edgekit.data.documents import Form, check_text
from edgekit.errors import DataError, EdgekitError, EnvironmentLacksError, UsageError
from edgekit.resources import is_package_resource, package_resource
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

    from edgekit.data.formats import Cell, RowStream, Table

_SHOWN_VALUES = 10


class Columns(StageConfig):
    """Which columns of the source hold what."""

    text: str = "text"
    """Column of the text."""
    label: str = "label"
    """Column of the label; not read where only text is needed."""
    messages: str = "messages"
    """Column of the turns of a conversation, each with role and content; for `form = "chat"`."""
    prompt: str = "prompt"
    """Column of the prompt; for `form = "prompt-completion"` and `"prompt"`."""
    completion: str = "completion"
    """Column of what follows the prompt; for `form = "prompt-completion"`."""


class DataSource(StageConfig):
    """Text from one place, labelled or not."""

    source: str
    """A hub id, a path to a .csv, .tsv, .jsonl, .json, .parquet or .txt file, or pkg:NAME/path of a package."""
    columns: Columns = Columns()
    """Which columns hold the text and the label."""
    form: Form | None = None
    """What a language model reads in a row: `text`, `chat`, `prompt-completion`, or `prompt`, which a teacher answers
    before it is learned. None: labelled text for a classifier; inside a table for a language model, the form of the
    data around it."""
    where: dict[str, str | int] = {}
    """Keep only the rows whose columns hold these values."""
    skip_empty: bool = False
    """Leave out rows without text; otherwise such a row is an error."""
    label_map: dict[str, str] = {}
    """Value in the label column to the name of the label; needed where they differ."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    subset: str | None = None
    """Configuration of a hub id that has several."""
    split: str | None = None
    """Split of a hub id; `train` when not given."""
    sentences: bool = False
    """Make a row of each sentence; for text without labels, as a sentence need not have the label of its text."""
    skip: int = Field(default=0, ge=0)
    """Texts to leave out at the start, after the shuffle: texts that one source skips, another can take."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows to take at most, after the shuffle and `skip`; of sentences, these many of all that are left."""


def read_table(source: DataSource, *, seed: int = 0, labelled: bool = True, offline: bool = False) -> Dataset:
    """Returns the chosen rows, shuffled by `seed`: columns `text`, `label` (names, only when `labelled`) and `place`.

    `place` says where a row is in its file, as a person would count: `line 12`. Every row that `where` keeps is
    checked, also those that are then not taken.

    Raises:
        DataError: not found, a missing column, no rows, or a row without text or label, naming file, column and row.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    import datasets
    import numpy as np

    table = _read(source, offline)
    rows = _kept_rows(source, table)
    if source.skip_empty:
        cells = _column(source, table, source.columns.text, "columns.text")
        rows = [row for row in rows if not is_empty(cells[row])]
    texts = _texts(source, table, rows)
    places = [f"{table.unit} {table.numbers[row]}" for row in rows]
    columns = {"text": texts, "place": places}
    if labelled:
        columns["label"] = _label_names(source, table, rows)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))[source.skip :]
    if len(order) == 0:
        raise DataError(f"{source.source}: skip = {source.skip} leaves none of its {len(rows)} rows. Skip fewer.")
    if source.sentences:
        columns = _cut_into_sentences([texts[row] for row in order], [places[row] for row in order])
        order = generator.permutation(len(columns["text"]))
    chosen = {name: [values[index] for index in order[: source.max_rows]] for name, values in columns.items()}
    features = datasets.Features({name: datasets.Value("string") for name in chosen})
    return datasets.Dataset.from_dict(chosen, features=features)


def digest_of(source: DataSource, *, offline: bool = False) -> str:
    """Returns a digest that changes when the source's content does: of the file, or of the hub's commit.

    Raises:
        DataError: not found.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    file = find_source(source)
    if file is not None:
        return hash_file(file)
    return hash_json({"hub": source.source, "commit": _commit(source, offline)})


def find_source(source: DataSource) -> Path | None:
    """Returns the file of a source; None for a hub id, and the hub is not asked.

    Raises:
        DataError: not found, or a setting that only a hub id has.
        EnvironmentLacksError: a package is not installed.
    """
    return None if _is_on_hub(source) else _local_file(source)


def portable_name(source: DataSource) -> str:
    """Returns what a source is called without the directory that it happens to be in on this machine."""
    path = Path(source.source).expanduser()
    return path.name if not is_package_resource(source.source) and path.exists() else source.source


def _is_on_hub(source: DataSource) -> bool:
    is_here = is_package_resource(source.source) or Path(source.source).expanduser().exists()
    return not is_here and not Path(source.source).suffix[1:].isalpha() and hub.is_hub_id(source.source)


def _commit(source: DataSource, offline: bool) -> str:
    try:
        return hub.commit_of(source.source, "dataset", source.revision, offline=offline)
    except UsageError as error:
        raise DataError(str(error)) from error


def _local_file(source: DataSource) -> Path:
    for key in ("revision", "subset", "split"):
        if getattr(source, key) is not None:
            raise DataError(f"{source.source}: {key} is given, which only a hub id has. Leave it out.")
    is_resource = is_package_resource(source.source)
    try:
        file = package_resource(source.source) if is_resource else Path(source.source).expanduser()
    except UsageError as error:
        raise DataError(str(error)) from error
    if not file.exists():
        raise DataError(f"{source.source}: not found; expected a file, a hub id, or pkg:NAME/path.")
    if not file.is_file():
        raise DataError(f"{source.source}: is a directory, expected a file in it.")
    return file


@contextmanager
def open_rows(source: DataSource, *, offline: bool = False) -> Iterator[RowStream]:
    """Yields the rows of a source as a stream; a hub id is on the disk while the `with` block lasts.

    Raises:
        DataError: not found or not readable.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    from edgekit.data.formats import RowStream, stream_dataset, stream_file

    if not _is_on_hub(source):
        yield stream_file(_local_file(source), source.source)
        return
    if offline:
        raise EnvironmentLacksError(
            f"{source.source}: a hub data set, and --offline forbids fetching it. Give a file on this machine."
        )
    import datasets

    commit = _commit(source, offline)
    with _quiet_datasets(), tempfile.TemporaryDirectory(prefix="edgekit-data-") as cache:
        try:
            loaded = datasets.load_dataset(
                source.source, source.subset, split=source.split or "train", revision=commit, cache_dir=cache
            )
        except EdgekitError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{source.source}: could not be read from the hub ({reason}).") from error
        yield RowStream("row", lambda: stream_dataset(loaded))


def _read(source: DataSource, offline: bool) -> Table:
    from edgekit.data.formats import collect

    with open_rows(source, offline=offline) as stream:
        return collect(stream)


def _kept_rows(source: DataSource, table: Table) -> list[int]:
    """Returns the indices of the rows that `where` keeps."""
    rows = list(range(len(table.numbers)))
    for name, wanted in source.where.items():
        cells = _column(source, table, name, f"where.{name}")
        kept = [row for row in rows if spell(cells[row]) == spell(wanted)]
        if not kept:
            values = list(dict.fromkeys(str(spell(cells[row])) for row in rows))
            shown = ", ".join(map(repr, values[:_SHOWN_VALUES])) + (", ..." if len(values) > _SHOWN_VALUES else "")
            raise DataError(
                f"{source.source}: where.{name}: no row holds '{wanted}'.{did_you_mean(str(wanted), values)} "
                f"Found: {shown}."
            )
        rows = kept
    return rows


def _column(source: DataSource, table: Table, name: str, key: str) -> list[Cell]:
    if name not in table.columns:
        known = ", ".join(f"'{column}'" for column in table.columns)
        raise DataError(
            f"{source.source}: {key}: no column '{name}'.{did_you_mean(name, table.columns)} Columns: {known}."
        )
    return table.columns[name]


def _texts(source: DataSource, table: Table, rows: list[int]) -> list[str]:
    name = source.columns.text
    cells = _column(source, table, name, "columns.text")
    texts = []
    for row in rows:
        text, place = cells[row], f"{source.source}, {table.unit} {table.numbers[row]}, column '{name}'"
        texts.append(check_text(text, place))
    return texts


def _cut_into_sentences(texts: list[str], places: list[str]) -> dict[str, list[str]]:
    """Returns the sentences of all texts, each with its place: `line 12, sentence 3`."""
    from edgekit.data.sentences import sentences

    cut = [
        (sentence, f"{place}, sentence {number}")
        for text, place in zip(texts, places, strict=True)
        for number, sentence in enumerate(sentences(text), start=1)
    ]
    return {"text": [sentence for sentence, _ in cut], "place": [place for _, place in cut]}


def _label_names(source: DataSource, table: Table, rows: list[int]) -> list[str]:
    """Returns the label of each row, through `label_map` when there is one."""
    name = source.columns.label
    cells = _column(source, table, name, "columns.label")
    labels = []
    for row in rows:
        value, place = spell(cells[row]), f"{source.source}, {table.unit} {table.numbers[row]}, column '{name}'"
        if value is None or not value.strip():
            raise DataError(f"{place}: found no label. Fill it or remove the row.")
        if source.label_map and value not in source.label_map:
            known = ", ".join(map(repr, source.label_map))
            raise DataError(
                f"{place}: found {value!r}, expected one of label_map's {known}."
                f"{did_you_mean(value, source.label_map)} Add it to label_map, or choose rows with `where`."
            )
        labels.append(source.label_map.get(value, value))
    return labels


def is_empty(cell: object) -> bool:
    """True for a cell that holds nothing: none, white space alone, or a list without turns."""
    return cell is None or cell == [] or (isinstance(cell, str) and not cell.strip())


def spell(cell: Cell) -> str | None:
    """Returns a cell as a person would write it in a recipe: 1 for 1.0, true for True."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        if cell != cell:
            return None
        return str(int(cell)) if cell.is_integer() else str(cell)
    return str(cell)


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silences `datasets` inside the `with` block and restores its settings."""
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
