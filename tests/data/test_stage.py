import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.data.source import DataSource
from edgekit.data.splitting import text_key
from edgekit.data.stage import PrepareConfig, prepare, source_digest
from edgekit.errors import DataError
from edgekit.events import Event
from tests.pico import pico_texts

LABELS = ["negative", "positive"]


def write(file: Path, rows: list[tuple[str, str]]) -> str:
    file.write_text("".join(f'"{text}",{label}\n' for text, label in [("text", "label"), *rows]), encoding="utf-8")
    return str(file)


def sentences(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    texts, labels = pico_texts(rows, seed=seed)
    return [(text, LABELS[label]) for text, label in zip(texts, labels, strict=True)]


def run(config: PrepareConfig, out: Path, seed: int = 0) -> tuple[PreparedData, Artifact, list[str]]:
    events: list[Event] = []
    artifact = prepare(StageInputs(), config, StageContext(out=out, seed=seed, events=events.append, offline=True))
    return PreparedData.open(artifact), artifact, [event.text for event in events if event.kind == "message"]


def test_labelled_text_is_divided_shuffled_and_named(tmp_path: Path) -> None:
    rows = sorted(sentences(200), key=lambda row: row[1])
    config = PrepareConfig(source=write(tmp_path / "a.csv", rows), labels=LABELS, validation=0.1, test=0.2)
    data, artifact, said = run(config, tmp_path / "out")
    assert data.labels == LABELS
    assert data.rows == {"train": 140, "validation": 20, "test": 40}
    assert said[-1] == "rows: train 140, validation 20, test 40"
    found = []
    for name, size in data.rows.items():
        split = data.split(name)
        assert split.labels is not None
        assert sum(split.labels) == size // 2
        found += [(text, LABELS[label]) for text, label in zip(split.texts, split.labels, strict=True)]
    assert sorted(found) == sorted(rows)
    assert artifact.lineage.config["source"] == config.source


def test_the_seed_decides_everything_and_the_place_of_the_file_nothing(tmp_path: Path) -> None:
    first = PrepareConfig(source=write(tmp_path / "a.csv", sentences(100)), labels=LABELS)
    (tmp_path / "elsewhere").mkdir()
    moved = PrepareConfig(source=write(tmp_path / "elsewhere" / "a.csv", sentences(100)), labels=LABELS)
    digests = [
        run(config, tmp_path / f"out{index}", seed)[1].digest
        for index, (config, seed) in enumerate([(first, 0), (first, 0), (moved, 0), (first, 1)])
    ]
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_duplicates_and_contradictions_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*sentences(60), ("twice told", "positive"), (" twice  told ", "positive")]
    rows += [("who knows", "positive"), ("who knows", "negative")]
    source = write(tmp_path / "a.csv", rows)
    data, _, said = run(PrepareConfig(source=source, labels=LABELS), tmp_path / "out")
    assert sum(data.rows.values()) == 61
    assert "labelled: left out 1 row whose text came before" in said
    assert "labelled: left out 2 rows whose text carries different labels" in said


@pytest.mark.parametrize("deduplicate", [True, False])
def test_nothing_that_is_judged_on_is_learned_from(tmp_path: Path, deduplicate: bool) -> None:
    rows = sentences(120)
    repeated = [*rows, *((f" {text} ", label) for text, label in rows)]
    other = [*sentences(40, seed=1), *rows[:10]]
    config = PrepareConfig(
        source=write(tmp_path / "a.csv", repeated),
        labels=LABELS,
        deduplicate=deduplicate,
        unlabelled=DataSource(source=write(tmp_path / "b.csv", [*repeated, *other, *sentences(50, seed=2)])),
        extra_tests={"other-domain": DataSource(source=write(tmp_path / "c.csv", other))},
    )
    data, _, said = run(config, tmp_path / "out")
    keys = {name: {text_key(text) for text in data.split(name).texts} for name in data.rows}
    judged = keys["test"] | keys["other-domain"]
    assert not judged & keys["validation"]
    assert not (judged | keys["validation"]) & keys["train"]
    assert not (judged | keys["validation"] | keys["train"]) & keys["unlabelled"]
    assert len(keys["other-domain"]) == len({text_key(text) for text, _ in other})
    assert {text_key(text) for text, _ in sentences(50, seed=2)} - judged == keys["unlabelled"] - keys["train"]
    assert data.split("unlabelled").labels is None
    assert any(text.startswith("unlabelled: left out ") and "another split" in text for text in said)
    assert any(text.startswith("train: left out ") for text in said)


def test_every_row_says_which_line_of_which_file_it_is(tmp_path: Path) -> None:
    own, other = sentences(60), sentences(30, seed=1)
    more = [f"First sentence of text {index}. Second sentence of text {index}." for index in range(9)]
    (tmp_path / "more.txt").write_text("\n".join(more), encoding="utf-8")
    config = PrepareConfig(
        source=write(tmp_path / "a.csv", own),
        labels=LABELS,
        unlabelled=DataSource(source=str(tmp_path / "more.txt"), sentences=True),
        extra_tests={"other": DataSource(source=write(tmp_path / "b.csv", other))},
    )
    data, _, _ = run(config, tmp_path / "out")
    expected = {f"a.csv, line {line}": text for line, (text, _) in enumerate(own, start=2)}
    expected |= {f"b.csv, line {line}": text for line, (text, _) in enumerate(other, start=2)}
    for line, text in enumerate(more, start=1):
        for number, part in enumerate(text[:-1].split(". "), start=1):
            expected[f"more.txt, line {line}, sentence {number}"] = f"{part}."
    for name in ("train", "validation", "test", "other", "unlabelled"):
        split = data.split(name)
        assert split.places is not None
        assert [expected[place] for place in split.places] == split.texts
        assert split.row_name(3) == f"row 3 ({split.places[3]})"
    assert {place.partition(",")[0] for place in data.split("other").places or []} == {"b.csv"}


def test_values_are_mapped_to_labels_in_the_order_of_the_task(tmp_path: Path) -> None:
    rows = [(text, {"negative": "0", "positive": "1"}[label]) for text, label in sentences(60)]
    source = write(tmp_path / "a.csv", rows)
    label_map = {"1": "positive", "0": "negative"}
    data, _, _ = run(PrepareConfig(source=source, labels=LABELS, label_map=label_map), tmp_path / "out")
    expected = dict(sentences(60))
    train = data.split("train")
    assert train.labels is not None
    assert [LABELS[label] for label in train.labels] == [expected[text] for text in train.texts]


BAD_ROWS: list[tuple[list[tuple[str, str]], dict[str, Any], str]] = [
    (
        [*sentences(20), ("fine", "postive")],
        {},
        "a.csv, line 22, column 'label': found the label 'postive', which the task does not have; expected one of "
        "['negative', 'positive']. Did you mean 'positive'?",
    ),
    (
        [*((f"{index} a", "bad") for index in range(9)), *sentences(2), ("b", "good")],
        {},
        "a.csv, line 2, column 'label': found the label 'bad'",
    ),
    ([("a", "0"), ("b", "positive"), ("c", "1")], {}, '{ "0" = "...", "positive" = "positive", "1" = "..." }; or'),
    ([(text, "positive") for text, _ in sentences(20)], {}, "one class only: all 20 rows are 'positive'"),
    (sentences(20), {"labels": [*LABELS, "neutral"]}, "found no row with the label 'neutral'"),
    (sentences(4), {}, "too few rows with the label 'negative': 2; expected at least 3"),
    ([*sentences(20), (" ", "positive")], {}, "a.csv, line 22, column 'text': found only white space"),
]


@pytest.mark.parametrize(("rows", "changes", "message"), BAD_ROWS, ids=[row[2][:40] for row in BAD_ROWS])
def test_bad_rows_are_refused_and_nothing_is_written(
    tmp_path: Path, rows: list[tuple[str, str]], changes: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "a.csv", rows)
    with pytest.raises(DataError) as caught:
        run(PrepareConfig(**{"source": source, "labels": LABELS, **changes}), tmp_path / "out")
    assert source in str(caught.value)
    assert message in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


def test_a_split_that_leaks_empty_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", sentences(40))
    config = PrepareConfig(source=source, labels=LABELS, unlabelled=DataSource(source=source))
    with pytest.raises(DataError, match="the split 'unlabelled' is empty after duplicates"):
        run(config, tmp_path / "out")
    config = PrepareConfig(source=source, labels=LABELS, extra_tests={"same": DataSource(source=source)})
    with pytest.raises(DataError, match="the split 'train' is empty"):
        run(config, tmp_path / "out")


def test_an_extra_test_of_one_class_names_its_own_file(tmp_path: Path) -> None:
    other = write(tmp_path / "b.csv", [(text, "positive") for text, _ in sentences(9, seed=1)])
    config = PrepareConfig(
        source=write(tmp_path / "a.csv", sentences(40)),
        labels=LABELS,
        extra_tests={"other": DataSource(source=other)},
    )
    with pytest.raises(DataError, match=r"b\.csv: split 'other': found one class only"):
        run(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["one"]}, "at least 2 items"),
        ({"test": 0}, "greater than 0"),
        ({"validation": 0.5, "test": 0.5}, r"validation \+ test: found 0.5 \+ 0.5, expected at most 0.9"),
        ({"label_map": {"0": "negatve"}}, "stands for the label 'negatve', expected one of .*Did you mean 'negative'"),
        ({"extra_tests": {"train": {"source": "b.csv"}}}, "found the name 'train'"),
        ({"extra_tests": {"../x": {"source": "b.csv"}}}, r"found the name '\.\./x'"),
        ({"sorce": "b.csv"}, "Extra inputs are not permitted"),
        ({"max_rows": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareConfig(**{"source": "a.csv", "labels": LABELS, **changes})


def test_the_digest_for_cache_keys_loads_nothing_heavy_and_follows_every_source(tmp_path: Path) -> None:
    config = PrepareConfig(
        source=write(tmp_path / "a.csv", sentences(40)),
        labels=LABELS,
        unlabelled=DataSource(source=write(tmp_path / "b.csv", sentences(40, seed=1))),
        extra_tests={"other": DataSource(source=write(tmp_path / "c.csv", sentences(40, seed=2)))},
    )
    code = (
        "import sys; from edgekit.data.stage import PrepareConfig, source_digest; "
        f"print(source_digest(PrepareConfig.model_validate_json({config.model_dump_json()!r}))); "
        "assert not {'datasets', 'numpy', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == source_digest(config)
    for name in ("a.csv", "b.csv", "c.csv"):
        before = source_digest(config)
        with (tmp_path / name).open("a", encoding="utf-8") as stream:
            stream.write("more,positive\n")
        assert source_digest(config) != before
