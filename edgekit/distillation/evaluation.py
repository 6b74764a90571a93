"""Accuracy and cross-entropy of a classifier on encoded, labelled rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekit.data.preprocessing import length_buckets
from edgekit.distillation.batches import Rows, collate
from edgekit.distillation.config import Precision
from edgekit.distillation.learner import View, observe
from edgekit.distillation.losses import cross_entropy_loss
from edgekit.distillation.progress import Score

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

_BATCH_SIZE = 64


def evaluate(
    model: PreTrainedModel, rows: Rows, pad_id: int, *, accelerator: Accelerator, precision: Precision
) -> Score:
    """Returns the score of `model` on labelled `rows`, which the processes share; the model's mode is restored."""
    batches = length_buckets([len(ids) for ids in rows.input_ids], _BATCH_SIZE)
    totals = torch.zeros(3, dtype=torch.float64)  # right, cross-entropy, rows
    training = model.training
    model.eval()
    with torch.inference_mode():
        for chosen in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = collate(rows, chosen, (pad_id, pad_id), accelerator.device)
            logits = observe(model, View(), batch.input_ids, batch.attention_mask, precision=precision).logits
            right = (logits.argmax(dim=-1) == batch.labels).sum()
            loss = cross_entropy_loss(logits, batch.labels, reduction="sum")
            totals += torch.tensor([float(right), float(loss), len(chosen)], dtype=torch.float64)
    model.train(training)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.float().to(accelerator.device), reduction="sum").cpu().double()
    right_rows, loss_sum, count = totals.tolist()
    return Score(accuracy=right_rows / count, cross_entropy=loss_sum / count)
