"""The student with its losses, as one module: a forward pass gives the sums that the trainer weights and divides.

It knows batches and models, not files, epochs or optimizers.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.distillation.batches import Batch, Rows
from edgekit.distillation.config import Precision
from edgekit.distillation.losses import (
    attention_relation_loss,
    cross_entropy_loss,
    hidden_state_loss,
    soft_target_loss,
)
from edgekit.distillation.precision import autocast
from edgekit.distillation.projections import PARTS, find_projections, watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Observation:
    """What a forward pass showed."""

    logits: Tensor
    """(B, C), float32."""
    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    """Layer to its output, (B, T, H)."""
    projections: dict[str, Tensor] = field(default_factory=dict)
    """`query`, `key` and `value` of the relation layer, each (B, T, H)."""


@dataclass(frozen=True)
class View:
    """What to watch in a model besides its logits."""

    layers: tuple[int, ...] = ()
    """Layers whose outputs are kept."""
    relation_layer: int | None = None
    """Layer whose queries, keys and values are kept."""


def observe(
    model: PreTrainedModel, view: View, input_ids: Tensor, attention_mask: Tensor, *, precision: Precision
) -> Observation:
    """Runs `model` on (B, T) ids and mask and returns what `view` asks for."""
    with ExitStack() as stack:
        projections: dict[str, Tensor] = {}
        if view.relation_layer is not None:
            projections = stack.enter_context(watched(find_projections(model, view.relation_layer)))
        stack.enter_context(autocast(precision, input_ids.device))
        outputs = model(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=bool(view.layers) or None
        )
    # hidden_states[0] is the embeddings' output
    hidden_states = {layer: outputs.hidden_states[layer + 1] for layer in view.layers}
    return Observation(outputs.logits.float(), hidden_states, projections)


@dataclass(frozen=True)
class Objective:
    """The weight of each loss."""

    alpha: float = 0.0
    """Weight of the soft targets; the labels get `1 - alpha`."""
    temperature: float = 1.0
    hidden_state_weight: float = 0.0
    attention_relation_weight: float = 0.0
    layer_map: tuple[tuple[int, int], ...] = ()
    """Pairs (student layer, teacher layer) whose hidden states are matched."""
    relation_layers: tuple[int, int] = (0, 0)
    """(student layer, teacher layer) whose relations are matched."""
    relation_heads: int = 1

    @property
    def needs_teacher(self) -> bool:
        """True when the teacher runs beside the student."""
        return self.hidden_state_weight > 0 or self.attention_relation_weight > 0

    @property
    def student_view(self) -> View:
        """What to watch in the student."""
        return self._view(0)

    @property
    def teacher_view(self) -> View:
        """What to watch in the teacher."""
        return self._view(1)

    def _view(self, side: int) -> View:
        layers = tuple(pair[side] for pair in self.layer_map) if self.hidden_state_weight > 0 else ()
        return View(layers, self.relation_layers[side] if self.attention_relation_weight > 0 else None)

    def coefficients(self, rows: Rows, chosen: list[int]) -> dict[str, float]:
        """Returns what each sum over the rows `chosen`, one optimizer step, is multiplied by: weight / number.

        Soft targets are divided by the rows. Cross-entropy is divided by the labelled rows that as many rows hold on
        average, not by those that happen to be among them: so the gradient is an unbiased estimate of that of
        `alpha * mean over all rows + (1 - alpha) * mean over labelled rows`, also where long texts are all unlabelled.
        Hidden states and relations are divided by the positions that count.
        """
        labelled = len(chosen) * rows.labelled_share
        found = {
            "cross_entropy": (1 - self.alpha) / labelled if labelled else 0.0,
            "soft_targets": self.alpha / len(chosen),
        }
        if self.needs_teacher:
            positions = max(int(rows.comparable_tokens[chosen].sum()), 1)
            found["hidden_states"] = self.hidden_state_weight / (positions * max(len(self.layer_map), 1))
            found["attention_relations"] = self.attention_relation_weight / positions
        return found


class Learner(nn.Module):
    """A model, its objective and, where hidden sizes differ, the learned projections of its hidden states."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        teacher_size: int | None = None,
        *,
        precision: Precision = "float32",
    ) -> None:
        """Takes the model to train; `teacher_size` is the teacher's hidden size where hidden states are matched.

        Projections are drawn from torch's generator as the caller seeded it.
        """
        super().__init__()
        self.model = model
        self.objective = objective
        self.precision = precision
        self.projections = nn.ModuleDict()
        size = model.config.hidden_size
        if objective.hidden_state_weight > 0 and teacher_size is not None and teacher_size != size:
            for student_layer, _ in objective.layer_map:
                self.projections[str(student_layer)] = nn.Linear(size, teacher_size)

    def forward(self, batch: Batch, teacher: Observation | None) -> dict[str, Tensor]:
        """Returns the name of each loss to its sum over the batch, a scalar float32."""
        view = self.objective.student_view
        seen = observe(self.model, view, batch.input_ids, batch.attention_mask, precision=self.precision)
        sums: dict[str, Tensor] = {}
        if self.objective.alpha < 1:
            sums["cross_entropy"] = cross_entropy_loss(seen.logits, batch.labels, reduction="sum")
        if self.objective.alpha > 0 and batch.teacher_logits is not None:
            sums["soft_targets"] = soft_target_loss(
                seen.logits, batch.teacher_logits, temperature=self.objective.temperature, reduction="sum"
            )
        if self.objective.needs_teacher and teacher is not None and batch.comparable is not None:
            width = min(batch.comparable.shape[1], _width(teacher))
            comparable = batch.comparable[:, :width]
            if self.objective.hidden_state_weight > 0:
                sums["hidden_states"] = self._hidden_states(seen, teacher, comparable)
            if self.objective.attention_relation_weight > 0:
                sums["attention_relations"] = self._relations(seen, teacher, comparable)
        return sums

    def _hidden_states(self, seen: Observation, teacher: Observation, comparable: Tensor) -> Tensor:
        width, total = comparable.shape[1], torch.zeros((), device=comparable.device)
        for student_layer, teacher_layer in self.objective.layer_map:
            states = seen.hidden_states[student_layer][:, :width].float()
            if str(student_layer) in self.projections:
                states = self.projections[str(student_layer)](states)
            aim = teacher.hidden_states[teacher_layer][:, :width]
            total = total + hidden_state_loss(states, aim, comparable, reduction="sum")
        return total

    def _relations(self, seen: Observation, teacher: Observation, comparable: Tensor) -> Tensor:
        width, total = comparable.shape[1], torch.zeros((), device=comparable.device)
        for part in PARTS:
            own, aim = seen.projections[part][:, :width], teacher.projections[part][:, :width]
            # keys and values that heads share in groups are narrower: they are regrouped into fewer heads
            heads = math.gcd(self.objective.relation_heads, own.shape[-1], aim.shape[-1])
            total = total + attention_relation_loss(own, aim, comparable, relation_heads=heads, reduction="sum")
        return total


def spaced_layers(student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """Returns every student layer paired with teacher layers evenly spaced to the last: 3 of 6 gives 1, 3, 5."""
    return tuple(
        (layer, math.ceil((layer + 1) * teacher_layers / student_layers) - 1) for layer in range(student_layers)
    )


def _width(teacher: Observation) -> int:
    """Returns T of the teacher's pass."""
    return next(iter([*teacher.hidden_states.values(), *teacher.projections.values()])).shape[1]
