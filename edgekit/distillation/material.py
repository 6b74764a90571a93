"""Turns prepared data into rows to learn from, and checks that data, student and teacher mean the same labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgekit.data.prepared import PreparedData, Split
from edgekit.data.preprocessing import encode
from edgekit.distillation.batches import Rows
from edgekit.distillation.losses import IGNORED
from edgekit.distillation.signal import Signal
from edgekit.errors import DataError, ModelError
from edgekit.models.source import LoadedModel
from edgekit.models.tasks import TaskConfig

UNLABELLED = "unlabelled"


def check_data_labels(data: PreparedData, task: TaskConfig, role: str) -> None:
    """Checks that the data's labels are the model's, in the same order.

    Raises:
        DataError: they are not; names both.
    """
    if data.labels != task.labels:
        raise DataError(
            f"{data.path}: found the labels {data.labels} in the data, expected those of the {role}, {task.labels}, in "
            "that order. Map the data's labels when preparing it, or import the model with the data's labels."
        )


def check_teacher_labels(student: TaskConfig, teacher: TaskConfig) -> None:
    """Checks that student and teacher give logits for the same labels in the same order.

    Raises:
        ModelError: they do not; names both.
    """
    if student.labels != teacher.labels:
        raise ModelError(
            f"distill: found the labels {student.labels} in the student and {teacher.labels} in the teacher, expected "
            "the same in the same order. Cut the student from this teacher, or import it with the teacher's labels."
        )


def labelled_rows(data: PreparedData, name: str, loaded: LoadedModel) -> Rows:
    """Returns the split `name` encoded for `loaded`.

    Raises:
        DataError: the split is missing, empty, without labels, or holds a label that is unknown or a text without
            tokens.
    """
    split = data.split(name)
    if not split.texts:
        raise DataError(f"{data.path}: the split '{name}' is empty, expected labelled rows.")
    if split.labels is None:
        raise DataError(f"{data.path}: the split '{name}' has no column 'label', expected one.")
    labels = np.array(split.labels, dtype=np.int64)
    unknown = np.flatnonzero((labels < 0) | (labels >= len(data.labels)))
    if len(unknown):
        row = int(unknown[0])
        raise DataError(
            f"{data.path}: {name} {split.row_name(row)}: found the label {labels[row]}, expected 0 to "
            f"{len(data.labels) - 1}."
        )
    return _encoded(data, split, labels, loaded)


def check_classes(data: PreparedData, rows: Rows) -> None:
    """Checks that the training rows are of more than one class.

    Raises:
        DataError: only one class is there.
    """
    present = sorted({data.labels[label] for label in rows.labels if label != IGNORED})
    if len(present) < 2:
        raise DataError(
            f"{data.path}: found only the label {present[0]!r} in the split 'train', expected at least two of "
            f"{data.labels}. Add rows of the others, or shuffle before splitting."
        )


def distillation_rows(data: PreparedData, student: LoadedModel, signal: Signal, *, use_unlabelled: bool) -> Rows:
    """Returns the training rows, and the unlabelled ones if asked and there, with the teacher's logits."""
    rows = labelled_rows(data, "train", student)
    check_classes(data, rows)
    logits = [signal.logits["train"]]
    if use_unlabelled and UNLABELLED in data.rows:
        split = data.split(UNLABELLED)
        more = _encoded(data, split, np.full(len(split), IGNORED, dtype=np.int64), student)
        rows = Rows(
            rows.names + more.names,
            rows.texts + more.texts,
            rows.input_ids + more.input_ids,
            np.concatenate([rows.labels, more.labels]),
        )
        logits.append(signal.logits[UNLABELLED])
    return replace(rows, teacher_logits=np.concatenate(logits))


def with_teacher_ids(rows: Rows, data: PreparedData, teacher: LoadedModel) -> Rows:
    """Returns `rows` with the teacher's encoding beside the student's.

    Raises:
        ModelError: the tokenizers cut no text into equally many tokens, so that no position can be compared.
    """
    where = [f"{data.path}: {name}" for name in rows.names]
    ids = encode(rows.texts, teacher.tokenizer, teacher.task.max_length, where=where)
    rows = replace(rows, teacher_input_ids=ids)
    if not rows.comparable_tokens.any():
        raise ModelError(
            "distill: teacher and student cut every text into different numbers of tokens, so hidden states and "
            "attention relations cannot be compared. Set both weights to 0, or cut the student from this teacher."
        )
    return rows


def _encoded(data: PreparedData, split: Split, labels: np.ndarray, loaded: LoadedModel) -> Rows:
    names = [split.row_name(row) for row in range(len(split))]
    where = [f"{data.path / split.name}.parquet, {name}" for name in names]
    ids = encode(split.texts, loaded.tokenizer, loaded.task.max_length, where=where)
    return Rows([f"{split.name} {name}" for name in names], split.texts, ids, labels)
