"""The `prepare` stage: reads text, checks it, removes duplicates and leaks, and divides it by the seed.

Labelled text for a classifier is divided here; what a language model reads is divided in `corpus.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue, field_validator, model_validator

from edgekit.artifact import Artifact, hash_json, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.data.source import DataSource, digest_of
from edgekit.errors import DataError
from edgekit.events import Event
from edgekit.resources import is_package_resource
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:
    from edgekit.data.documents import Form
    from edgekit.data.splitting import Dropped, Rows

_OWN_SPLITS = ("train", "validation", "test", "unlabelled")
_LEAKS_FROM = {
    "validation": "a test split",
    "train": "a test split or in validation",
    "unlabelled": "another split",
}
_FRACTION = Field(default=0.1, gt=0, lt=0.9)


class PrepareConfig(DataSource):
    """Text and how it is divided: labelled for a classifier, or of some form for a language model."""

    labels: list[str] = []
    """Names of the classes, in the order of the label indices; none for a language model, which has a `form`."""
    validation: float = _FRACTION
    """Share of the rows that choose the checkpoint, 0 to 1."""
    test: float = _FRACTION
    """Share of the rows that quality is measured on, 0 to 1."""
    deduplicate: bool = True
    """Keep one row of those that differ in white space alone, and none of those that disagree on the label."""
    unlabelled: DataSource | None = None
    """More text to distill on; its labels, if it has any, are not read."""
    extra_tests: dict[str, DataSource] = {}
    """Name to a further test set, for example of another domain; labelled for a classifier."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str]) -> list[str]:
        if len(labels) == 1:
            raise ValueError(f"found {labels}, expected at least 2 items, or none for a language model.")
        return labels

    @field_validator("extra_tests")
    @classmethod
    def _check_names(cls, extra_tests: dict[str, DataSource]) -> dict[str, DataSource]:
        for name in extra_tests:
            if name in _OWN_SPLITS or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(
                    f"found the name {name!r}, expected small letters, digits, '-' and '_', and none of "
                    f"{', '.join(_OWN_SPLITS)}."
                )
        return extra_tests

    @model_validator(mode="after")
    def _check_whole(self) -> PrepareConfig:
        if self.validation + self.test > 0.9:
            raise ValueError(
                f"validation + test: found {self.validation} + {self.test}, expected at most 0.9 together: "
                "the rest is the training data."
            )
        if bool(self.labels) == (self.form is not None):
            found = f"labels {self.labels} and form '{self.form}'" if self.labels else "neither"
            raise ValueError(
                f"labels, form: found {found}, expected labels for a classifier, or form = 'text', 'chat' or "
                "'prompt-completion' for a language model."
            )
        self._check_documents() if self.form else self._check_labelled()
        return self

    def _check_documents(self) -> None:
        for where, source in _all_sources(self).items():
            if source.label_map or source.sentences:
                key = "label_map" if source.label_map else "sentences"
                raise ValueError(
                    f"{key if source is self else f'{where}.{key}'}: is set, expected it for a classifier alone: a "
                    "language model reads whole texts without labels."
                )

    def _check_labelled(self) -> None:
        if any(source.form for source in _all_sources(self).values()):
            raise ValueError("form: is set in a table of labelled text, expected it for a language model alone.")
        for where, source in {"label_map": self, **_nested(self.extra_tests)}.items():
            if source.sentences:
                key = "sentences" if source is self else f"{where}.sentences"
                raise ValueError(
                    f"{key}: found true for labelled text, expected it for `unlabelled` alone: a sentence need not "
                    "have the label of its text."
                )
            for value, label in source.label_map.items():
                if label not in self.labels:
                    raise ValueError(
                        f"{where}: {value!r} stands for the label {label!r}, expected one of {self.labels}."
                        f"{did_you_mean(label, self.labels)}"
                    )


def prepare(inputs: StageInputs, config: PrepareConfig, context: StageContext) -> Artifact:
    """Makes a `data` artifact: parquet splits and `data.json`.

    No text of `validation`, `test` or an extra test set is in `train` or `unlabelled`, nor a test text in `validation`.

    Raises:
        DataError: a source cannot be read, a row has no text or a wrong label, or a split would be empty.
        EnvironmentLacksError: a package or the network is missing, or the disk is full.
    """
    from edgekit.data.prepared import DataDescription, write_description

    sources: list[dict[str, JsonValue]] = []
    with publish(context.out, kind="data", lineage=lineage_of("prepare", inputs, config, context)) as staging:
        write = _write_documents if config.form else _write_labelled
        sizes, forms = write(staging, config, context, sources)
        description = DataDescription(labels=config.labels, splits=sizes, forms=forms, sources=sources)
        write_description(staging, description)
    _say(context, "rows: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    return Artifact.open(context.out, kind="data")


def _write_labelled(
    staging: Path, config: PrepareConfig, context: StageContext, sources: list[dict[str, JsonValue]]
) -> tuple[dict[str, int], dict[str, Form]]:
    """Writes every split and returns split to rows."""
    from edgekit.data.prepared import Split, write_split

    splits = _make_splits(config, context, sources)
    for name, rows in splits.items():
        write_split(staging, Split(name, rows.texts, rows.labels))
    return {name: len(rows) for name, rows in splits.items()}, {}


def _write_documents(
    staging: Path, config: PrepareConfig, context: StageContext, sources: list[dict[str, JsonValue]]
) -> tuple[dict[str, int], dict[str, Form]]:
    """Writes every split and returns split to rows and to form."""
    from edgekit.data.corpus import Corpus

    named = {"documents" if name == "labelled" else name: source for name, source in _all_sources(config).items()}
    corpus = Corpus(named, (config.validation, config.test), deduplicate=config.deduplicate, context=context)
    sizes, forms = corpus.write(staging)
    for name, source in named.items():
        sources.append(_source_record(name, source, corpus.rows_read[name], context))
    return sizes, forms


def source_digest(config: PrepareConfig, offline: bool = False) -> str:
    """Returns a digest that changes when the content of any source does; for cache keys. Loads no heavy library.

    Raises:
        DataError: a source is not found.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    return hash_json({name: digest_of(source, offline=offline) for name, source in _all_sources(config).items()})


def _all_sources(config: PrepareConfig) -> dict[str, DataSource]:
    unlabelled = {} if config.unlabelled is None else {"unlabelled": config.unlabelled}
    return {"labelled": config, **unlabelled, **_nested(config.extra_tests)}


def _nested(extra_tests: dict[str, DataSource]) -> dict[str, DataSource]:
    return {f"extra_tests.{name}": source for name, source in extra_tests.items()}


def _make_splits(config: PrepareConfig, context: StageContext, sources: list[dict[str, JsonValue]]) -> dict[str, Rows]:
    """Reads every source and returns the splits; what is judged on goes before what is learned from."""
    from edgekit.data.splitting import Dropped, keys_of, stratify, without

    read = {name: _read(name, source, config, context, sources) for name, source in _all_sources(config).items()}
    fractions = {"test": config.test, "validation": config.validation}
    fractions["train"] = 1 - config.test - config.validation
    try:
        parts = stratify(read["labelled"], fractions, config.labels, context.seed)
    except DataError as error:
        raise DataError(f"{config.source}: {error}") from error
    tests = [parts["test"], *(read[name] for name in _nested(config.extra_tests))]
    dropped = Dropped()
    unseen = keys_of(*tests)
    validation, dropped.leaks["validation"] = without(parts["validation"], unseen)
    unseen |= keys_of(validation)
    train, dropped.leaks["train"] = without(parts["train"], unseen)
    splits = {"train": train, "validation": validation, "test": parts["test"]}
    if config.unlabelled is not None:
        unseen |= keys_of(train)
        splits["unlabelled"], dropped.leaks["unlabelled"] = without(read["unlabelled"], unseen)
    splits |= {name: read[f"extra_tests.{name}"] for name in config.extra_tests}
    _report_leaks(dropped, context)
    _check_splits(splits, config)
    return splits


def _read(
    name: str, source: DataSource, config: PrepareConfig, context: StageContext, sources: list[dict[str, JsonValue]]
) -> Rows:
    """Returns the rows of one source, deduplicated, and notes in `sources` what was read."""
    from edgekit.data.source import read_table
    from edgekit.data.splitting import Rows, deduplicate

    labelled = name != "unlabelled"
    _progress(context, f"reading {source.source}")
    table = read_table(source, seed=context.seed, labelled=labelled, offline=context.offline)
    labels = None
    if labelled:
        labels = _label_indices(source, list(table["label"]), list(table["place"]), config.labels)
    rows = Rows(list(table["text"]), labels)
    sources.append(_source_record(name, source, len(rows), context))
    if config.deduplicate:
        rows, dropped = deduplicate(rows)
        _report_duplicates(name, dropped, context)
    return rows


def _source_record(name: str, source: DataSource, rows: int, context: StageContext) -> dict[str, JsonValue]:
    return {
        "name": name,
        "source": _portable(source.source),
        "digest": digest_of(source, offline=context.offline),
        "where": dict(source.where),
        "rows": rows,
    }


def _label_indices(source: DataSource, found: list[str], places: list[str], labels: list[str]) -> list[int]:
    index_of = {label: index for index, label in enumerate(labels)}
    for label, place in zip(found, places, strict=True):
        if label not in index_of:
            raise DataError(
                f"{source.source}, {place}, column '{source.columns.label}': found the label {label!r}, which the task "
                f"does not have; expected one of {labels}.{did_you_mean(label, labels)} Map it, for example "
                f'label_map = {{ "{label}" = "{labels[0]}" }}, choose rows with `where`, or add it to the labels.'
            )
    return [index_of[label] for label in found]


def _check_splits(splits: dict[str, Rows], config: PrepareConfig) -> None:
    """Refuses an empty split, and labelled splits that lack a class.

    Raises:
        DataError: naming the split and the source.
    """
    from edgekit.data.splitting import check_classes

    for name, rows in splits.items():
        if len(rows) == 0:
            raise DataError(
                f"{config.source}: the split '{name}' is empty after duplicates and texts of the test and validation "
                "splits were left out. Give it other rows."
            )
        if rows.labels is not None:
            source = config.extra_tests[name].source if name in config.extra_tests else config.source
            try:
                check_classes(rows.labels, config.labels, at_least=1)
            except DataError as error:
                raise DataError(f"{source}: split '{name}': {error}") from error


def _portable(source: str) -> str:
    """Returns the source without the directory that it happens to be in on this machine."""
    path = Path(source).expanduser()
    return path.name if not is_package_resource(source) and path.exists() else source


def _report_duplicates(name: str, dropped: Dropped, context: StageContext) -> None:
    if dropped.duplicates:
        _say(context, f"{name}: left out {_count(dropped.duplicates)} whose text came before")
    if dropped.conflicts:
        _say(context, f"{name}: left out {_count(dropped.conflicts)} whose text carries different labels")


def _report_leaks(dropped: Dropped, context: StageContext) -> None:
    for name, count in dropped.leaks.items():
        if count:
            what = _LEAKS_FROM[name]
            _say(context, f"{name}: left out {_count(count)} whose text is in {what}")


def _count(rows: int) -> str:
    return f"{rows:,} row" + ("" if rows == 1 else "s")


def _say(context: StageContext, text: str) -> None:
    context.events(Event("message", stage="prepare", text=text))


def _progress(context: StageContext, text: str) -> None:
    context.events(Event("progress", stage="prepare", text=text, unit="rows"))
