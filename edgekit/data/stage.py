"""The `prepare` stage: reads text, checks it, removes duplicates and leaks, and divides it by the seed.

Labelled text for a classifier is divided in `labelled.py`, what a language model reads in `corpus.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue, field_validator, model_validator

from edgekit.artifact import Artifact, hash_json, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.data.source import DataSource, digest_of, find_source, portable_name
from edgekit.errors import DataError
from edgekit.events import Event
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:
    from edgekit.data.documents import Form

_OWN_SPLITS = ("train", "validation", "test", "unlabelled")
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
    """More text to distill on, of a language model in a form of its own; labels, if it has any, are not read."""
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
                f"labels, form: found {found}, expected labels for a classifier, or form = 'text', 'chat', "
                "'prompt-completion' or 'prompt' for a language model."
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

    with publish(context.out, kind="data", lineage=lineage_of("prepare", inputs, config, context)) as staging:
        sizes, forms, rows_read = _write_splits(staging, config, context)
        sources = [
            _source_record(name, source, rows_read[name], context) for name, source in _all_sources(config).items()
        ]
        description = DataDescription(labels=config.labels, splits=sizes, forms=forms, sources=sources)
        write_description(staging, description)
    _say(context, "rows: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    return Artifact.open(context.out, kind="data")


def _write_splits(
    staging: Path, config: PrepareConfig, context: StageContext
) -> tuple[dict[str, int], dict[str, Form], dict[str, int]]:
    """Writes every split and returns split to rows, split to form, and source to the rows read from it."""
    from edgekit.data.corpus import Corpus
    from edgekit.data.labelled import LabelledText

    sources, shares = _all_sources(config), (config.validation, config.test)
    if config.form is None:
        text = LabelledText(sources, config.labels, shares, config.deduplicate, context)
        return text.write(staging), {}, text.rows_read
    corpus = Corpus(sources, shares, config.deduplicate, context)
    sizes, forms = corpus.write(staging)
    return sizes, forms, corpus.rows_read


def source_digest(config: PrepareConfig, offline: bool = False) -> str:
    """Returns a digest that changes when the content of any source does; for cache keys. Loads no heavy library.

    Raises:
        DataError: a source is not found.
        EnvironmentLacksError: a package is not installed, or the hub cannot be reached or must not be.
    """
    return hash_json({name: digest_of(source, offline=offline) for name, source in _all_sources(config).items()})


def source_problems(config: PrepareConfig) -> dict[str, str]:
    """Returns the key of each source that is not to be found, with what is wrong of it; the hub is not asked.

    Raises:
        EnvironmentLacksError: a package is not installed.
    """
    problems = {}
    for name, source in _all_sources(config).items():
        try:
            find_source(source)
        except DataError as error:
            problems["source" if source is config else f"{name}.source"] = str(error)
    return problems


def split_forms(config: PrepareConfig) -> dict[str, Form]:
    """Returns split to what a language model reads in a row of it; nothing for a classifier's data."""
    if config.form is None:
        return {}
    own = {"documents": ["test", "validation", "train"]}
    forms = {name: source.form or config.form for name, source in _all_sources(config).items()}
    return {split.removeprefix("extra_tests."): form for name, form in forms.items() for split in own.get(name, [name])}


def prompt_splits(config: PrepareConfig) -> list[str]:
    """Returns the splits that hold prompts, which a teacher has to answer before they are learned or judged on."""
    return [name for name, form in split_forms(config).items() if form == "prompt"]


def _all_sources(config: PrepareConfig) -> dict[str, DataSource]:
    unlabelled = {} if config.unlabelled is None else {"unlabelled": config.unlabelled}
    return {"documents" if config.form else "labelled": config, **unlabelled, **_nested(config.extra_tests)}


def _nested(extra_tests: dict[str, DataSource]) -> dict[str, DataSource]:
    return {f"extra_tests.{name}": source for name, source in extra_tests.items()}


def _source_record(name: str, source: DataSource, rows: int, context: StageContext) -> dict[str, JsonValue]:
    return {
        "name": name,
        "source": portable_name(source),
        "digest": digest_of(source, offline=context.offline),
        "where": dict(source.where),
        "rows": rows,
    }


def _say(context: StageContext, text: str) -> None:
    context.events(Event("message", stage="prepare", text=text))
