"""The task table: what a model is for, which class loads it, and how its inputs and outputs are called.

A new task is a new row in `TASKS`. Nothing here loads a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from edgekit.artifact import Artifact
from edgekit.contract import StageConfig
from edgekit.errors import ModelError
from edgekit.validation import explain

TASK_FILE = "task.json"
_HEAD_TRAINED = "head_trained"

TaskKind = Literal["text-classification", "causal-lm"]


class TaskConfig(StageConfig):
    """What a model is for: the `[task]` table of a recipe and the `task.json` of a model."""

    kind: TaskKind = "text-classification"
    """The task: a row of the task table."""
    labels: list[str] = []
    """Names of the classes, in the order of the logits; a language model has none."""
    max_length: int = Field(default=128, ge=4, le=131072)
    """Tokens a text, special tokens included; longer texts are cut, everywhere alike. For a language model: tokens of
    context."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str]) -> list[str]:
        if len(labels) == 1:
            raise ValueError(f"found 1 label ({labels}), expected at least 2.")
        if len(set(labels)) != len(labels):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            raise ValueError(f"found {', '.join(map(repr, twice))} more than once, expected distinct labels.")
        if any(label != label.strip() or not label for label in labels):
            raise ValueError(f"found {labels}, expected labels that are not empty, without white space around them.")
        return labels

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if TASKS[self.kind].has_labels and not self.labels:
            raise ValueError(f"labels: found none, expected at least 2 for the task '{self.kind}'.")
        if self.labels and not TASKS[self.kind].has_labels:
            raise ValueError(f"labels: found {self.labels}, expected none for the task '{self.kind}'.")
        return self


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
    has_labels: bool
    """True where a model chooses among named classes."""


TASKS: dict[str, Task] = {
    "text-classification": Task(
        kind="text-classification",
        auto_class="AutoModelForSequenceClassification",
        input_names=("input_ids", "attention_mask", "token_type_ids"),
        output_names=("logits",),
        metric="accuracy",
        has_labels=True,
    ),
    "causal-lm": Task(
        kind="causal-lm",
        auto_class="AutoModelForCausalLM",
        input_names=("input_ids", "attention_mask"),
        output_names=("logits",),
        metric="perplexity",
        has_labels=False,
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
    fields = {"kind" if key == "task" else key: value for key, value in _read_fields(file).items()}
    fields.pop(_HEAD_TRAINED, None)
    try:
        return TaskConfig.model_validate(fields)
    except ValidationError as error:
        raise ModelError(explain(error, TaskConfig, str(file))) from error


def is_head_trained(directory: Path) -> bool:
    """Returns False where the `task.json` in `directory` says that the head was drawn at random and never trained.

    Raises:
        ModelError: `task.json` is missing or not valid.
    """
    found = _read_fields(directory / TASK_FILE).get(_HEAD_TRAINED, True)
    if not isinstance(found, bool):
        raise ModelError(
            f"{directory / TASK_FILE}: {_HEAD_TRAINED}: found {found!r}, expected true or false. Import the model "
            "again."
        )
    return found


def require_trained_head(teacher: Artifact, stage: str) -> None:
    """Refuses a teacher whose answers are noise.

    Raises:
        ModelError: its classification head was never trained, or its `task.json` is missing or not valid.
    """
    if not is_head_trained(teacher.path):
        raise ModelError(
            f"{stage}: {teacher.path}: found a teacher whose classification head was drawn at random and never "
            "trained, expected a trained one: its outputs say nothing. Finetune it first (`edgekit finetune`, or a "
            "stage 'finetune' at the start of the recipe), or import a model that has a trained head."
        )


def write_task(directory: Path, task: TaskConfig, *, head_trained: bool = True) -> None:
    """Writes `task.json` into `directory`; of a model that chooses among labels, also whether its head was trained."""
    fields: dict[str, object] = {"task": task.kind, "max_length": task.max_length}
    if task.labels:
        fields = {"task": task.kind, "labels": task.labels, "max_length": task.max_length, _HEAD_TRAINED: head_trained}
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    (directory / TASK_FILE).write_text(text + "\n", encoding="utf-8")


def _read_fields(file: Path) -> dict[str, object]:
    if not file.is_file():
        raise ModelError(f"{file}: missing; expected a model that `edgekit import` or a later stage wrote.")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not a JSON object ({error}). Import the model again.") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{file}: not a JSON object (found {fields!r}). Import the model again.")
    return fields
