"""What `prepare` makes for a language model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgekit.artifact import Artifact
from edgekit.cli import run as run_command
from edgekit.contract import StageContext, StageInputs
from edgekit.data.corpus import divide
from edgekit.data.documents import Completion, Conversation, Message, PlainText, context_of
from edgekit.data.prepared import PreparedData
from edgekit.data.source import Columns, DataSource
from edgekit.data.splitting import text_key
from edgekit.data.stage import PrepareConfig, prepare, source_digest
from edgekit.errors import DataError
from edgekit.events import Event
from tests.pico import pico_texts

USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def passages(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"passage": text, "idx": row} for row, text in enumerate(pico_texts(count, seed=seed)[0])]


def run(config: PrepareConfig, out: Path, seed: int = 0) -> tuple[PreparedData, Artifact, list[str]]:
    events: list[Event] = []
    artifact = prepare(StageInputs(), config, StageContext(out=out, seed=seed, events=events.append, offline=True))
    return PreparedData.open(artifact), artifact, [event.text for event in events if event.kind == "message"]


def texts_of(data: PreparedData, split: str) -> list[str]:
    return data.split(split).texts


def config_for(source: str, **settings: Any) -> PrepareConfig:
    return PrepareConfig(source=source, **{"form": "text", "columns": Columns(text="passage"), **settings})


def test_text_is_deduplicated_divided_and_shuffled(tmp_path: Path) -> None:
    rows = passages(100)
    repeated = [*rows, *({"passage": f" {row['passage']}  ", "idx": 0} for row in rows[::2])]
    source = write(tmp_path / "a.jsonl", repeated)
    data, artifact, said = run(config_for(source, validation=0.1, test=0.2), tmp_path / "out")
    assert data.labels == []
    assert data.rows == {"test": 20, "validation": 10, "train": 70}
    assert data.forms == {"test": "text", "validation": "text", "train": "text"}
    assert data.digest == artifact.digest
    assert said == ["documents: left out 50 rows whose text came before", "rows: test 20, validation 10, train 70"]
    found = [text for split in data.rows for text in texts_of(data, split)]
    assert sorted(found) == sorted(row["passage"] for row in rows)
    assert found != [row["passage"] for row in rows]
    assert [document.text for document in data.documents("test") if isinstance(document, PlainText)] == found[:20]
    assert data.split("train").labels is None


def test_the_seed_decides_everything_and_the_place_of_the_file_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", passages(60))
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "a.jsonl", passages(60))
    digests = [
        run(config_for(file), tmp_path / f"out{index}", seed)[1].digest
        for index, (file, seed) in enumerate([(source, 0), (source, 0), (moved, 0), (source, 1)])
    ]
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "a.jsonl",
        "elsewhere",
        *(f"out{i}" for i in range(4)),
    ]


@pytest.mark.parametrize("deduplicate", [True, False])
def test_nothing_that_is_judged_on_is_learned_from(tmp_path: Path, deduplicate: bool) -> None:
    rows = passages(100)
    other = [*passages(30, seed=1), *rows[:10]]
    more = [*rows, *other, *passages(40, seed=2)]
    config = config_for(
        write(tmp_path / "a.jsonl", [*rows, *rows]),
        deduplicate=deduplicate,
        unlabelled=DataSource(source=write(tmp_path / "b.jsonl", more), columns=Columns(text="passage")),
        extra_tests={"other": DataSource(source=write(tmp_path / "c.jsonl", other), columns=Columns(text="passage"))},
    )
    data, _, said = run(config, tmp_path / "out")
    keys = {name: {text_key(text) for text in texts_of(data, name)} for name in data.rows}
    judged = keys["test"] | keys["other"]
    assert not judged & keys["validation"]
    assert not (judged | keys["validation"]) & keys["train"]
    assert not (judged | keys["validation"] | keys["train"]) & keys["unlabelled"]
    assert keys["other"] == {text_key(row["passage"]) for row in other}
    assert {text_key(row["passage"]) for row in passages(40, seed=2)} - judged <= keys["unlabelled"] | keys["train"]
    assert any(text.startswith("train: left out ") for text in said)


def test_the_same_prompt_is_never_in_training_and_test(tmp_path: Path) -> None:
    rows = [{"q": f"What is {n % 20}?", "a": f"It is {n}."} for n in range(100)]
    columns = Columns(prompt="q", completion="a")
    source = write(tmp_path / "a.jsonl", rows)
    data, _, said = run(config_for(source, form="prompt-completion", columns=columns), tmp_path / "out")
    prompts = {name: {row.prompt for row in data.documents(name) if isinstance(row, Completion)} for name in data.rows}
    assert prompts["test"]
    assert not prompts["test"] & (prompts["train"] | prompts["validation"])
    assert not prompts["validation"] & prompts["train"]
    assert data.split("test").texts[0].startswith("What is")
    assert any("left out" in text for text in said)


def test_conversations_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": f"Say {n}."}, ASSISTANT, USER]}
        for n in range(30)
    ]
    data, _, _ = run(PrepareConfig(source=write(tmp_path / "a.jsonl", rows), form="chat"), tmp_path / "out")
    found = [document for name in data.rows for document in data.documents(name)]
    expected = [Conversation(tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])) for row in rows]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert context_of(expected[3]) == ("system", "", "user", "Say 3.")


def test_parquet_csv_and_text_files_are_read_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = pico_texts(40)[0]
    chats = [[{"role": "user", "content": text}, dict(ASSISTANT)] for text in texts]
    parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("\n\n".join(texts))
    (tmp_path / "c.csv").write_text("kind,text\n" + "".join(f'{n % 2},"{text}"\n' for n, text in enumerate(texts)))
    (tmp_path / "d.json").write_text(json.dumps([{"text": text} for text in texts]))
    for name, settings, count in [
        ("a.parquet", {"form": "chat"}, 40),
        ("b.txt", {"form": "text"}, 40),
        ("c.csv", {"form": "text", "where": {"kind": 1}}, 20),
        ("d.json", {"form": "text"}, 40),
    ]:
        data, _, _ = run(PrepareConfig(source=str(tmp_path / name), **settings), tmp_path / f"out-{name}")
        assert sum(data.rows.values()) == count


def test_rows_that_one_source_skips_another_takes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", passages(60))
    columns = Columns(text="passage")
    config = config_for(
        source, max_rows=40, extra_tests={"rest": DataSource(source=source, skip=40, columns=columns, max_rows=15)}
    )
    data, _, _ = run(config, tmp_path / "out")
    assert sum(data.rows.values()) == 55
    assert not set(texts_of(data, "rest")) & set(texts_of(data, "train") + texts_of(data, "test"))


def test_empty_rows_may_be_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*passages(30), {"passage": " "}, {"passage": None}])
    data, _, said = run(config_for(source, skip_empty=True), tmp_path / "out")
    assert sum(data.rows.values()) == 30
    assert said[0] == "documents: left out 2 rows without text"


def chat(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


GOOD = [chat({"role": "user", "content": f"{n}?"}, ASSISTANT) for n in range(9)]
CHAT, PAIR = {"form": "chat"}, {"form": "prompt-completion", "columns": Columns()}
BAD_ROWS: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([*GOOD, chat(USER)], CHAT, "line 10, column 'messages': found a conversation without an assistant turn (roles: u"),
    ([*GOOD, chat(USER, {"role": "asistant", "content": "x"})], CHAT, "turn 2: found the role 'asistant', expected"),
    ([*GOOD, chat({"from": "human", "value": "x"})], CHAT, "line 10, column 'messages', turn 1: found the keys from"),
    ([*GOOD, chat(USER, {**ASSISTANT, "tool_calls": [1]})], CHAT, "turn 2: found the key 'tool_calls'"),
    ([*GOOD, chat(USER, {"role": "assistant", "content": " "})], CHAT, "turn 2: found only white space"),
    ([*GOOD, chat()], CHAT, "line 10, column 'messages': found nothing, expected turns"),
    ([*GOOD, {"message": []}], CHAT, "line 10: columns.messages: no column 'messages'. Did you mean 'message'?"),
    ([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}], PAIR, "line 2, column 'completion': fo"),
    ([{"prompt": "", "completion": "b"}], PAIR, "line 1, column 'prompt': found only white space"),
    ([*passages(9), {"passage": ""}], {}, "line 10, column 'passage': found only white space"),
    ([*passages(9), {"passage": 3}], {}, "line 10, column 'passage': found 3 (int), expected text"),
    (passages(9), {"columns": Columns(text="pasage")}, "line 1: columns.text: no column 'pasage'. Did you mean 'pas"),
    (passages(9), {"where": {"topic": "x"}}, "line 1: where.topic: no column 'topic'"),
    (passages(9), {"where": {"idx": 77}}, "no row holds idx = '77'. Found, among others: idx: '0', '1'"),
    (passages(2), {}, "found 2 different documents, expected at least 3, one for each of test, validation and train"),
    (passages(9), {"skip": 9}, "skip = 9 leaves none of its 9 documents"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "settings", "message"), BAD_ROWS, ids=[row[2][:50] for row in BAD_ROWS])
def test_bad_rows_are_refused_by_file_and_row_and_nothing_is_written(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        run(config_for(source, **settings), tmp_path / "out")
    assert source in str(caught.value)
    assert message in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_split_that_leaks_empty_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", passages(30))
    same = DataSource(source=source, columns=Columns(text="passage"))
    with pytest.raises(DataError, match="the split 'unlabelled' is empty after documents"):
        run(config_for(source, unlabelled=same), tmp_path / "out")
    with pytest.raises(DataError, match="the split 'validation' is empty after documents"):
        run(config_for(source, extra_tests={"same": same}), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "labels, form: found neither, expected labels for a classifier, or form ="),
        ({"labels": ["a", "b"], "form": "text"}, "expected labels for a classifier, or form ="),
        ({"labels": ["a"], "form": "text"}, "at least 2 items, or none for a language model"),
        ({"form": "text", "sentences": True}, "sentences: is set, expected it for a classifier alone"),
        ({"form": "text", "label_map": {"a": "b"}}, "label_map: is set"),
        ({"form": "text", "unlabelled": {"source": "b", "sentences": True}}, "unlabelled.sentences: is set"),
        ({"labels": ["a", "b"], "unlabelled": {"source": "b", "form": "text"}}, "form: is set in a table of labelled"),
        ({"form": "dialogue"}, "Input should be 'text', 'chat', 'prompt-completion' or 'prompt'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareConfig(source="a.jsonl", **settings)


def test_the_command_line_spells_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", passages(30))
    by_function = run(config_for(source), tmp_path / "function", seed=3)[1]
    words = ["prepare", source, str(tmp_path / "command"), "--form", "text", "--columns.text", "passage", "--seed", "3"]
    assert run_command(words) == 0
    by_command = Artifact.open(tmp_path / "command")
    assert (by_command.digest, by_command.lineage.config) == (by_function.digest, by_function.lineage.config)


def test_the_digest_for_cache_keys_follows_every_source(tmp_path: Path) -> None:
    other = DataSource(source=write(tmp_path / "b.jsonl", passages(5)))
    config = config_for(write(tmp_path / "a.jsonl", passages(5)), extra_tests={"other": other})
    before = source_digest(config)
    write(tmp_path / "b.jsonl", passages(6))
    assert source_digest(config) != before


def test_a_classifiers_data_has_no_documents(tmp_path: Path) -> None:
    texts, labels = pico_texts(30)
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in zip(texts, labels, strict=True))
    )
    data, _, _ = run(PrepareConfig(source=str(tmp_path / "a.csv"), labels=["0", "1"]), tmp_path / "out")
    assert data.forms == {}
    with pytest.raises(DataError, match="split 'train' holds labelled text, expected documents for a language model"):
        next(data.documents("train"))
    assert "forms" not in json.loads((data.path / "data.json").read_text())


@given(st.integers(3, 200), st.floats(0.01, 0.45), st.floats(0.01, 0.45))
def test_the_division_is_a_partition_in_the_shares_asked_for(count: int, test: float, validation: float) -> None:
    parts = divide(np.arange(count), {"test": test, "validation": validation}, "x")
    assert np.concatenate([parts["test"], parts["validation"], parts["train"]]).tolist() == list(range(count))
    assert all(len(part) >= 1 for part in parts.values())
    if count >= 20:
        assert abs(len(parts["test"]) - test * count) <= 1
        assert abs(len(parts["validation"]) - validation * count) <= 1


def test_prompts_are_turns_without_an_answer_and_leak_into_no_other_split(tmp_path: Path) -> None:
    talks = [{"messages": [{"role": "user", "content": f"Who {n}?"}, ASSISTANT]} for n in range(20)]
    source = write(tmp_path / "talks.jsonl", talks)
    questions = write(tmp_path / "questions.jsonl", [{"question": f"Who {n}?"} for n in range(15, 60)])
    columns = Columns(prompt="question")
    asked = DataSource(source=questions, form="prompt", columns=columns)
    config = PrepareConfig(source=source, form="chat", unlabelled=asked, extra_tests={"asked": asked})
    with pytest.raises(DataError, match="split 'unlabelled' is empty"):
        run(config, tmp_path / "out")  # every prompt is judged on
    judged = asked.model_copy(update={"max_rows": 10})
    learned = asked.model_copy(update={"skip": 10})
    config = config.model_copy(update={"unlabelled": learned, "extra_tests": {"asked": judged}})
    data, _, _ = run(config, tmp_path / "out")
    assert data.forms["unlabelled"] == data.forms["asked"] == "prompt"
    first = next(data.documents("asked"))
    assert isinstance(first, Conversation)
    assert [turn.role for turn in first.messages] == ["user"]
    contexts = {name: {context_of(document) for document in data.documents(name)} for name in data.rows}
    for name in ("train", "validation", "unlabelled"):
        others = [found for other, found in contexts.items() if other != name]
        assert all(contexts[name].isdisjoint(found) for found in others), name


def test_a_prompt_without_text_names_its_row(tmp_path: Path) -> None:
    source = write(tmp_path / "questions.jsonl", [{"question": "Who?"}, {"question": " "}])
    with pytest.raises(DataError, match=r"line 2, column 'question': found only white space"):
        run(PrepareConfig(source=source, form="prompt", columns=Columns(prompt="question")), tmp_path / "out")
