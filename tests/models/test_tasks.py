import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgekit.artifact import Artifact, Lineage
from edgekit.errors import ModelError
from edgekit.models.tasks import TASKS, TaskConfig, is_head_trained, read_task, write_task


def artifact(directory: Path) -> Artifact:
    return Artifact(directory, "model", "", {}, Lineage(stage="source"))


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    task = TaskConfig(labels=["schlecht", "gut", "größer"], max_length=64)
    write_task(tmp_path, task)
    assert read_task(artifact(tmp_path)) == task
    assert (tmp_path / "task.json").read_text(encoding="utf-8") == (
        '{\n  "task": "text-classification",\n  "labels": [\n    "schlecht",\n    "gut",\n    "größer"\n  ],\n'
        '  "max_length": 64,\n  "head_trained": true\n}\n'
    )


def test_a_task_says_whether_its_head_was_trained_and_an_older_one_counts_as_trained(tmp_path: Path) -> None:
    task = TaskConfig(labels=["bad", "good"])
    for trained in (True, False):
        write_task(tmp_path, task, head_trained=trained)
        assert is_head_trained(tmp_path) is trained
        assert read_task(artifact(tmp_path)) == task
    file = tmp_path / "task.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**fields, "head_trained": "no"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"task\.json: head_trained: found 'no', expected true or false"):
        is_head_trained(tmp_path)
    del fields["head_trained"]
    file.write_text(json.dumps(fields), encoding="utf-8")
    assert is_head_trained(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["only"], "found 1 label"),
        (["a", "b", "a"], "found 'a' more than once"),
        (["a", ""], "labels that are not empty"),
        (["a", " b"], "without white space around them"),
    ],
)
def test_labels_that_no_classifier_has_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskConfig(labels=labels)


def test_a_length_with_no_room_for_a_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 4"):
        TaskConfig(labels=["a", "b"], max_length=3)


def test_a_missing_task_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"task\.json: missing; expected a model that `edgekit import`"):
        read_task(artifact(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"task": "ner", "labels": ["a", "b"]}', "kind: found 'ner'"),
        ('{"labels": ["a", "b"], "max_lenght": 3}', "unknown key. Did you mean 'max_length'"),
    ],
)
def test_a_damaged_task_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "task.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_task(artifact(tmp_path))


def test_every_row_of_the_table_is_loadable() -> None:
    import transformers

    for kind, task in TASKS.items():
        assert task.kind == kind
        assert hasattr(transformers, task.auto_class)
