"""One training from models and data in memory: builds rows and objective, then hands them to the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from edgekit.artifact import Artifact
from edgekit.data.prepared import PreparedData
from edgekit.distillation.classification import ClassificationLesson
from edgekit.distillation.config import DistillConfig, FinetuneConfig, LayerPair
from edgekit.distillation.learner import Learner, Objective, spaced_layers
from edgekit.distillation.material import check_classes, distillation_rows, labelled_rows, with_teacher_ids
from edgekit.distillation.progress import Best
from edgekit.distillation.projections import find_projections
from edgekit.distillation.randomness import derived_seed, preserved_random_states
from edgekit.distillation.signal import Signal
from edgekit.distillation.trainer import Run, train
from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.source import LoadedModel, load_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PROJECTIONS = 3  # keeps the projections' random numbers apart from those of order and dropout


def train_on_labels(loaded: LoadedModel, data: PreparedData, config: FinetuneConfig, run: Run) -> Best:
    """Trains `loaded` in place on the split `train` and says how good the best evaluation was."""
    rows = labelled_rows(data, "train", loaded)
    check_classes(data, rows)
    validation = labelled_rows(data, "validation", loaded)
    set_dropout(loaded.model, config.dropout)
    pad_id = _pad_id(loaded)
    learner = Learner(loaded.model, Objective(), precision=config.precision)
    return train(ClassificationLesson(learner, rows, validation, (pad_id, pad_id)), config, run)


def train_student(
    student: LoadedModel, teacher: Artifact, material: tuple[PreparedData, Signal], config: DistillConfig, run: Run
) -> Best:
    """Trains `student` in place on its teacher's outputs and says how good the best evaluation was.

    The teacher itself is loaded only where hidden states or attention relations are matched.
    """
    data, signal = material
    rows = distillation_rows(data, student, signal, use_unlabelled=config.use_unlabelled)
    validation = labelled_rows(data, "validation", student)
    set_dropout(student.model, config.dropout)
    pad_id = _pad_id(student)
    if config.hidden_state_weight == 0 and config.attention_relation_weight == 0:
        objective = Objective(alpha=config.alpha, temperature=config.temperature)
        learner = Learner(student.model, objective, precision=config.precision)
        return train(ClassificationLesson(learner, rows, validation, (pad_id, pad_id)), config, run)
    loaded = load_model(teacher)
    rows = with_teacher_ids(rows, data, loaded)
    objective = matching_objective(config, student.model.config, loaded.model.config)
    if config.attention_relation_weight > 0:
        find_projections(student.model, objective.relation_layers[0])
        find_projections(loaded.model, objective.relation_layers[1])
    with preserved_random_states():
        _seed(run)
        size = loaded.model.config.hidden_size
        learner = Learner(student.model, objective, size, precision=config.precision)
    pad_ids = (pad_id, _pad_id(loaded))
    return train(ClassificationLesson(learner, rows, validation, pad_ids, loaded.model), config, run)


def matching_objective(config: DistillConfig, student: PretrainedConfig, teacher: PretrainedConfig) -> Objective:
    """Returns the objective with its layer map, relation layers and heads filled in and checked.

    Raises:
        UsageError: a layer that student or teacher does not have.
        UnsupportedError: the relation heads do not divide both hidden sizes.
    """
    counts = (student.num_hidden_layers, teacher.num_hidden_layers)
    chosen = config.layer_map
    pairs = spaced_layers(*counts) if chosen is None else tuple((pair.student, pair.teacher) for pair in chosen)
    last = LayerPair(student=counts[0] - 1, teacher=counts[1] - 1)
    relation = config.relation_layers or last
    for pair in (*pairs, (relation.student, relation.teacher)):
        for role, layer, count in zip(("student", "teacher"), pair, counts, strict=True):
            if layer >= count:
                raise UsageError(
                    f"distill: found {role} layer {layer}, expected 0 to {count - 1}: it has {count} layers."
                )
    heads = config.relation_heads or teacher.num_attention_heads
    sizes = (student.hidden_size, teacher.hidden_size)
    if config.attention_relation_weight > 0 and any(size % heads for size in sizes):
        raise UnsupportedError(
            f"relation_heads: found {heads}, expected a number that divides both hidden sizes, {sizes[0]} (student) "
            f"and {sizes[1]} (teacher)."
        )
    return Objective(
        alpha=config.alpha,
        temperature=config.temperature,
        hidden_state_weight=config.hidden_state_weight,
        attention_relation_weight=config.attention_relation_weight,
        layer_map=pairs,
        relation_layers=(relation.student, relation.teacher),
        relation_heads=heads,
    )


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


def _seed(run: Run) -> None:
    from accelerate.utils import set_seed

    set_seed(derived_seed(run.seed, _PROJECTIONS))
