"""One training from models and data in memory: builds rows and objective, then hands them to the loop."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from torch import nn

from edgekit.artifact import Artifact
from edgekit.data.prepared import PreparedData
from edgekit.distillation.attention import bf16_attention
from edgekit.distillation.classification import ClassificationLesson
from edgekit.distillation.config import DistillConfig, FinetuneConfig, TrainingConfig
from edgekit.distillation.learner import Learner, Objective
from edgekit.distillation.matching import drawing_projections, matching_of
from edgekit.distillation.material import check_classes, distillation_rows, labelled_rows, with_teacher_ids
from edgekit.distillation.processes import make_accelerator
from edgekit.distillation.progress import Best
from edgekit.distillation.signal import Signal
from edgekit.distillation.trainer import Run, train
from edgekit.models.source import LoadedModel, load_model


def train_on_labels(loaded: LoadedModel, data: PreparedData, config: FinetuneConfig, run: Run) -> Best:
    """Trains `loaded` in place on the split `train` and says how good the best evaluation was."""
    rows = labelled_rows(data, "train", loaded)
    check_classes(data, rows)
    validation = labelled_rows(data, "validation", loaded)
    set_dropout(loaded.model, config.dropout)
    pad_id = _pad_id(loaded)
    learner = Learner(loaded.model, Objective(), precision=config.precision)
    return _train(ClassificationLesson(learner, rows, validation, (pad_id, pad_id)), config, run)


def train_student(
    student: LoadedModel, teacher: Artifact, material: tuple[PreparedData, Signal], config: DistillConfig, run: Run
) -> Best:
    """Trains `student` in place on its teacher's outputs and says how good the best evaluation was.

    The teacher itself is loaded only where hidden states or attention relations are matched.
    """
    data, signal = material
    rows = distillation_rows(data, student, signal, use_unlabelled=config.use_unlabelled)
    validation = replace(labelled_rows(data, "validation", student), teacher_logits=signal.logits["validation"])
    set_dropout(student.model, config.dropout)
    pad_id = _pad_id(student)
    if not config.matches_layers:
        objective = Objective(alpha=config.alpha, temperature=config.temperature)
        learner = Learner(student.model, objective, precision=config.precision)
        return _train(ClassificationLesson(learner, rows, validation, (pad_id, pad_id)), config, run)
    loaded = load_model(teacher)
    rows = with_teacher_ids(rows, data, loaded)
    matching = matching_of(config, student.model, loaded.model)
    objective = Objective(**vars(matching), alpha=config.alpha, temperature=config.temperature)
    with drawing_projections(run.seed):
        size = loaded.model.config.hidden_size
        learner = Learner(student.model, objective, size, precision=config.precision)
    pad_ids = (pad_id, _pad_id(loaded))
    return _train(ClassificationLesson(learner, rows, validation, pad_ids, loaded.model), config, run)


def _train(lesson: ClassificationLesson, config: TrainingConfig, run: Run) -> Best:
    device = make_accelerator().device
    with ExitStack() as stack:
        for model in filter(None, (lesson.learner.model, lesson.teacher)):
            stack.enter_context(bf16_attention(model, config.precision, device))
        return train(lesson, config, run)


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Gives every dropout of `model` one probability; None leaves the model's own. Its config stays as it is."""
    if probability is None:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "dropout_prob")) and isinstance(value, float):
                setattr(module, name, probability)


def _pad_id(loaded: LoadedModel) -> int:
    return int(loaded.tokenizer.pad_token_id or 0)
