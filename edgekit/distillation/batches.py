"""Rows to learn from, the order in which an epoch takes them, and the tensors of a batch.

An epoch is cut into windows: the rows of one optimizer step, of similar length. A window is cut into forward passes,
which the processes share. The order depends on the seed and the epoch alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.data.preprocessing import length_buckets, pad
from edgekit.distillation.losses import IGNORED
from edgekit.distillation.randomness import generator

_ORDER = 1  # keeps the order's random numbers apart from those of dropout


@dataclass(frozen=True)
class Rows:
    """Encoded text with what is known of it; row i of every field belongs together."""

    names: list[str]
    """Where the row came from, for messages: `train row 17 (reviews.csv, line 12)`."""
    texts: list[str]
    input_ids: list[list[int]]
    """Token ids of the model that learns, not padded."""
    labels: NDArray[np.int64]
    """(N), -100 where unlabelled."""
    teacher_logits: NDArray[np.float32] | None = None
    """(N, C); None without soft targets."""
    teacher_input_ids: list[list[int]] | None = None
    """Token ids of the teacher, when it runs beside the student."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.texts)

    @cached_property
    def labelled_share(self) -> float:
        """Share of the rows that have a label, 0 to 1."""
        return float((self.labels != IGNORED).mean()) if len(self) else 0.0

    @cached_property
    def comparable_tokens(self) -> NDArray[np.int64]:
        """(N) tokens of each row that both tokenizers cut into equally many; 0 for other rows, or without a teacher."""
        if self.teacher_input_ids is None:
            return np.zeros(len(self), dtype=np.int64)
        pairs = zip(self.input_ids, self.teacher_input_ids, strict=True)
        return np.array([len(own) if len(own) == len(other) else 0 for own, other in pairs], dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """The tensors of one forward pass."""

    rows: list[int]
    """Row numbers, B of them."""
    input_ids: Tensor
    """(B, T), int64."""
    attention_mask: Tensor
    """(B, T), int64, 0 where padding."""
    labels: Tensor
    """(B), int64, -100 where unlabelled."""
    teacher_logits: Tensor | None = None
    """(B, C), float32."""
    teacher_input_ids: Tensor | None = None
    """(B, T_teacher), int64."""
    teacher_attention_mask: Tensor | None = None
    """(B, T_teacher), int64."""
    comparable: Tensor | None = None
    """(B, T), True at the positions of rows that both tokenizers cut into equally many tokens, padding excluded."""


@dataclass(frozen=True)
class Window:
    """The rows of one optimizer step, as this process takes them."""

    rows: list[int]
    """Every row of the step, on all processes."""
    passes: list[list[int]]
    """Rows of each forward pass of this process."""
    repeats: int = 0
    """Trailing passes that only keep this process in step with the others; they do not count."""


@dataclass(frozen=True)
class Plan:
    """The windows of any epoch, for one process."""

    lengths: list[int]
    """Tokens of each row."""
    batch_size: int
    """Rows a forward pass."""
    accumulation: int
    """Forward passes a step, on each process."""
    seed: int
    process: int = 0
    processes: int = 1
    _cached: dict[int, list[list[int]]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over all rows."""
        return -(-len(self.lengths) // self._window_size)

    def window(self, step: int) -> Window:
        """Returns the rows of optimizer step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self._epoch(epoch)[position]
        passes = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        own = passes[self.process :: self.processes]
        repeats = -(-len(passes) // self.processes) - len(own)
        return Window(rows, own + [passes[0]] * repeats, repeats)

    @property
    def _window_size(self) -> int:
        return self.batch_size * self.accumulation * self.processes

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._cached:
            self._cached.clear()
            self._cached[epoch] = length_buckets(self.lengths, self._window_size, generator(self.seed, _ORDER, epoch))
        return self._cached[epoch]


def collate(rows: Rows, chosen: list[int], pad_ids: tuple[int, int], device: torch.device) -> Batch:
    """Returns the tensors of the rows `chosen`; `pad_ids` are the model's and the teacher's padding ids."""
    input_ids, attention_mask = _padded([rows.input_ids[row] for row in chosen], pad_ids[0], device)
    labels = torch.from_numpy(rows.labels[chosen]).to(device)
    logits = None if rows.teacher_logits is None else torch.from_numpy(rows.teacher_logits[chosen]).to(device)
    if rows.teacher_input_ids is None:
        return Batch(chosen, input_ids, attention_mask, labels, logits)
    teacher_ids, teacher_mask = _padded([rows.teacher_input_ids[row] for row in chosen], pad_ids[1], device)
    equal = attention_mask.sum(dim=1) == teacher_mask.sum(dim=1)  # (B)
    comparable = attention_mask.bool() & equal[:, None]
    return Batch(chosen, input_ids, attention_mask, labels, logits, teacher_ids, teacher_mask, comparable)


def _padded(ids: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    input_ids, attention_mask = pad(ids, pad_id)
    return torch.from_numpy(input_ids).to(device), torch.from_numpy(attention_mask).to(device)
