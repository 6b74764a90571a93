"""The student with its losses, as one module: a forward pass gives the sums that the trainer weights and divides.

It knows batches and models, not files, epochs or optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.distillation.batches import Batch, Rows
from edgekit.distillation.config import Precision
from edgekit.distillation.losses import cross_entropy_loss, soft_target_loss
from edgekit.distillation.matching import LayerOutputs, Matcher, Matching, View, run_watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Observation:
    """What a forward pass showed."""

    logits: Tensor
    """(B, C), float32."""
    layers: LayerOutputs


def observe(
    model: PreTrainedModel, view: View, input_ids: Tensor, attention_mask: Tensor, *, precision: Precision
) -> Observation:
    """Runs `model` on (B, T) ids and mask and returns its logits and what `view` asks for."""
    inputs: dict[str, Tensor | bool] = {"input_ids": input_ids, "attention_mask": attention_mask}
    outputs, layers = run_watched(model, model, inputs, view, precision)
    return Observation(outputs["logits"].float(), layers)


@dataclass(frozen=True)
class Objective(Matching):
    """The weight of each loss."""

    alpha: float = 0.0
    """Weight of the soft targets; the labels get `1 - alpha`."""
    temperature: float = 1.0

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
        return found | self.shares(int(rows.comparable_tokens[chosen].sum()))


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
        size = model.config.hidden_size
        self.matcher = Matcher(objective, size, size if teacher_size is None else teacher_size)

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
            sums |= self.matcher(seen.layers, teacher.layers, batch.comparable)
        return sums
