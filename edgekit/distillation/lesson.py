"""What the training loop needs to know of a task: rows by number, their tensors, their losses, and how to judge.

A task implements `Lesson` in a module of its own; the loop knows no labels and no vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn

from edgekit.distillation.batches import Window
from edgekit.distillation.config import Precision
from edgekit.distillation.progress import Score

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Prepared:
    """What one optimizer step of a process needs."""

    coefficients: dict[str, float]
    """What each sum is multiplied by: a weight over what all passes of the step, on all processes, hold."""
    batches: Iterable[Any]
    """The tensors of each forward pass, in the order of the window's passes."""


class Lesson(Protocol):
    """What is learned, from what, and what counts as better."""

    @property
    def learner(self) -> nn.Module:
        """What is trained: takes a batch and `look(...)`, returns the name of each loss to its sum, a scalar."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each training row."""

    @property
    def unit(self) -> Literal["rows", "tokens"]:
        """What a rate is told in."""

    def shard(self, accelerator: Accelerator) -> None:
        """Leaves each process with its share of the weights of a teacher that runs beside the learner."""

    def place(self, device: torch.device) -> None:
        """Moves what runs beside the learner to `device`."""

    def prepare(self, window: Window, step: int, accelerator: Accelerator) -> Prepared:
        """Returns the batches of step `step`, counted from 0; every process calls it."""

    def look(self, batch: Any, precision: Precision) -> Any:
        """Returns what a teacher shows on `batch`, without gradients; None where no teacher runs beside the learner."""

    def evaluate(self, accelerator: Accelerator, precision: Precision) -> Score:
        """Returns the score on validation data, which the processes share; the learner's mode is restored."""

    def name(self, row: int) -> str:
        """Returns where a row came from, for messages: `train row 17`."""

    def excerpt(self, row: int) -> str:
        """Returns how a row begins, for messages."""
