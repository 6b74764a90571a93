"""Classification as the training loop sees it: labelled rows, the teacher's logits, accuracy and cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from edgekit.data.preprocessing import length_buckets
from edgekit.distillation.batches import Batch, Rows, Window, collate
from edgekit.distillation.config import Precision
from edgekit.distillation.learner import Learner, Observation, observe
from edgekit.distillation.lesson import Prepared
from edgekit.distillation.losses import cross_entropy_loss, soft_target_loss
from edgekit.distillation.matching import View
from edgekit.distillation.progress import Score
from edgekit.distillation.sharding import shard_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

_BATCH_SIZE = 64
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ClassificationLesson:
    """What a classifier learns from."""

    learner: Learner
    rows: Rows
    """Rows to train on."""
    validation: Rows
    """Labelled rows that decide which weights are kept, with the teacher's logits where there is one."""
    pad_ids: tuple[int, int]
    """Padding id of the model and of the teacher."""
    teacher: PreTrainedModel | None = None
    """The teacher, where it runs beside the student; in evaluation mode."""
    unit: Literal["rows", "tokens"] = "rows"

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training row."""
        return [len(ids) for ids in self.rows.input_ids]

    def shard(self, accelerator: Accelerator) -> None:
        """Leaves each process with its share of the teacher's layers."""
        if self.teacher is not None:
            shard_teacher(self.teacher, accelerator)

    def place(self, device: torch.device) -> None:
        """Moves the teacher to `device`."""
        if self.teacher is not None:
            self.teacher.to(device)  # type: ignore[arg-type, unused-ignore]

    def prepare(self, window: Window, step: int, accelerator: Accelerator) -> Prepared:
        """Returns the batches of a step, padded when they are asked for."""
        coefficients = self.learner.objective.coefficients(self.rows, window.rows)
        return Prepared(
            coefficients, (collate(self.rows, chosen, self.pad_ids, accelerator.device) for chosen in window.passes)
        )

    def look(self, batch: Batch, precision: Precision) -> Observation | None:
        """Returns the teacher's hidden states and projections; None where they are not matched."""
        if self.teacher is None or batch.teacher_input_ids is None or batch.teacher_attention_mask is None:
            return None
        view = self.learner.objective.teacher_view
        ids, mask = batch.teacher_input_ids, batch.teacher_attention_mask
        return observe(self.teacher, view, ids, mask, precision=precision)

    def evaluate(self, accelerator: Accelerator, precision: Precision) -> Score:
        """Returns accuracy, cross-entropy and, with a teacher, the divergence from it on the validation rows."""
        return evaluate(
            self.learner.model, self.validation, self.pad_ids[0], accelerator=accelerator, precision=precision
        )

    def name(self, row: int) -> str:
        """Returns where a row came from."""
        return self.rows.names[row]

    def excerpt(self, row: int) -> str:
        """Returns how a row's text begins."""
        return self.rows.texts[row][:_SHOWN_CHARACTERS]


def evaluate(
    model: PreTrainedModel, rows: Rows, pad_id: int, *, accelerator: Accelerator, precision: Precision
) -> Score:
    """Returns the score of `model` on labelled `rows`, which the processes share; the model's mode is restored."""
    batches = length_buckets([len(ids) for ids in rows.input_ids], _BATCH_SIZE)
    totals = torch.zeros(4, dtype=torch.float64)  # right, cross-entropy, divergence, rows
    training = model.training
    model.eval()
    with torch.inference_mode():
        for chosen in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = collate(rows, chosen, (pad_id, pad_id), accelerator.device)
            logits = observe(model, View(), batch.input_ids, batch.attention_mask, precision=precision).logits
            right = (logits.argmax(dim=-1) == batch.labels).sum()
            loss = cross_entropy_loss(logits, batch.labels, reduction="sum")
            soft = 0.0
            if batch.teacher_logits is not None:
                soft = float(soft_target_loss(logits, batch.teacher_logits, reduction="sum"))
            totals += torch.tensor([float(right), float(loss), soft, len(chosen)], dtype=torch.float64)
    model.train(training)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.float().to(accelerator.device), reduction="sum").cpu().double()
    right_rows, loss_sum, soft_sum, count = totals.tolist()
    divergence = None if rows.teacher_logits is None else soft_sum / count
    return Score(accuracy=right_rows / count, cross_entropy=loss_sum / count, divergence=divergence)
