"""The task table: what a model is for, which class loads it, and how its inputs and outputs are called.

A new task is a new row in `TASKS`. Nothing here loads a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from edgekit.artifact import Artifact
from edgekit.contract import StageConfig
from edgekit.errors import ModelError
from edgekit.validation import explain

TASK_FILE = "task.json"


class TaskConfig(StageConfig):
    """What a model is for: the `[task]` table of a recipe and the `task.json` of a model."""

    kind: Literal["text-classification"] = "text-classification"
    """The task: a row of the task table."""
    labels: list[str]
    """Names of the classes, in the order of the logits."""
    max_length: int = Field(default=128, ge=4, le=8192)
    """Tokens a text, special tokens included; longer texts are cut, everywhere alike."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str]) -> list[str]:
        if len(labels) < 2:
            raise ValueError(f"found {len(labels)} labels ({labels}), expected at least 2.")
        if len(set(labels)) != len(labels):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            raise ValueError(f"found {', '.join(map(repr, twice))} more than once, expected distinct labels.")
        if any(label != label.strip() or not label for label in labels):
            raise ValueError(f"found {labels}, expected labels that are not empty, without white space around them.")
        return labels


@dataclass(frozen=True)
class Task:
    """One row of the task table."""

    kind: str
    """Name of the task, as recipes spell it."""
    auto_class: str
    """Class of `transformers` that loads a model for it."""
    input_names: tuple[str, ...]
    """Inputs of an exported model, in order; `token_type_ids` only where the model takes them."""
    output_names: tuple[str, ...]
    """Outputs of an exported model, in order."""
    metric: str
    """The number that quality is judged by."""


TASKS: dict[str, Task] = {
    "text-classification": Task(
        kind="text-classification",
        auto_class="AutoModelForSequenceClassification",
        input_names=("input_ids", "attention_mask", "token_type_ids"),
        output_names=("logits",),
        metric="accuracy",
    ),
}


def read_task(model: Artifact) -> TaskConfig:
    """Returns what `model` (of kind `model` or `onnx`) is for.

    Raises:
        ModelError: `task.json` is missing or not valid.
    """
    return read_task_file(model.path / TASK_FILE)


def read_task_file(file: Path) -> TaskConfig:
    """Returns the content of a `task.json`.

    Raises:
        ModelError: it is missing or not valid.
    """
    if not file.is_file():
        raise ModelError(f"{file}: missing; expected a model that `edgekit import` or a later stage wrote.")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return TaskConfig.model_validate({"kind" if key == "task" else key: value for key, value in fields.items()})
    except ValidationError as error:
        raise ModelError(explain(error, TaskConfig, str(file))) from error
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file}: not a JSON object ({error}). Import the model again.") from error


def write_task(directory: Path, task: TaskConfig) -> None:
    """Writes `task.json` into `directory`."""
    fields = {"task": task.kind, "labels": task.labels, "max_length": task.max_length}
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    (directory / TASK_FILE).write_text(text + "\n", encoding="utf-8")
