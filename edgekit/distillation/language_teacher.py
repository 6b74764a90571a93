"""What a teacher says of a batch of packed sequences: beside the student, or as it was kept on the disk.

Both give one row for each token that is learned, in the order of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from edgekit.data.packing import IGNORED, PADDING, PackedBatch, PackedTokens
from edgekit.data.separation import Separation, packed_inputs
from edgekit.distillation.config import Precision
from edgekit.distillation.matching import LayerOutputs, View, run_watched
from edgekit.distillation.precision import narrow_linears
from edgekit.distillation.sharding import shard_teacher
from edgekit.distillation.token_store import TokenSignal
from edgekit.distillation.vocabulary_head import VocabularyHead, find_head
from edgekit.distillation.vocabulary_targets import Teacher, TeacherStates

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LanguageBatch:
    """The tensors of one forward pass, int64 (B, T)."""

    input_ids: Tensor
    labels: Tensor
    """The token itself where it is learned, else -100; not shifted."""
    position_ids: Tensor
    document_ids: Tensor
    sequences: list[int] = field(default_factory=list)
    """Numbers of the sequences, B of them; empty for text that the student wrote."""

    @cached_property
    def rows(self) -> Tensor:
        """(N,), int64: of the B * (T - 1) positions that predict one, those that predict what is learned."""
        return (self.labels[:, 1:].reshape(-1) != IGNORED).nonzero()[:, 0]

    @property
    def followers(self) -> Tensor:
        """(N,), int64: what the positions `rows` are to predict."""
        return self.labels[:, 1:].reshape(-1)[self.rows]

    @cached_property
    def in_documents(self) -> Tensor:
        """(B, T), bool: False where padding."""
        return self.document_ids != PADDING

    @property
    def is_written(self) -> bool:
        """True for text that the student wrote: it is no example of what to say."""
        return not self.sequences


@dataclass(frozen=True)
class Shown:
    """What a teacher shows on a batch."""

    targets: Teacher
    """What it says of the N tokens that are learned."""
    layers: LayerOutputs | None = None
    """What was watched in it; None where no layers are matched."""


class LanguageSource(Protocol):
    """Whatever says what the student is to say."""

    def shard(self, accelerator: Accelerator) -> None:
        """Leaves each process with its share of a model's weights."""

    def place(self, device: torch.device, precision: Precision) -> None:
        """Moves a model to `device`, where it runs with `precision` from now on."""

    def look(self, batch: LanguageBatch, precision: Precision) -> Shown:
        """Returns what is said of the N tokens that are learned; without gradients."""


@dataclass(frozen=True)
class LanguageTeacher:
    """A teacher that runs beside the student."""

    model: PreTrainedModel
    """In evaluation mode."""
    token_ids: Tensor
    """(V_student,), int64: its id of each of the student's tokens."""
    separation: Separation
    view: View = field(default_factory=View)
    """What else to watch in it."""

    @cached_property
    def head(self) -> VocabularyHead:
        """Its head, in the student's vocabulary."""
        return find_head(self.model).select(self.token_ids)

    def shard(self, accelerator: Accelerator) -> None:
        """Leaves each process with its share of the layers; all processes then look equally often."""
        shard_teacher(self.model, accelerator)

    def place(self, device: torch.device, precision: Precision) -> None:
        """Moves the model's layers to `device`, in the dtype of their products; its head stays in float32."""
        self.model.to(device)  # type: ignore[arg-type, unused-ignore]
        narrow_linears(self.model.base_model, precision, device)

    def look(self, batch: LanguageBatch, precision: Precision) -> Shown:
        """Returns its whole distribution, and its layers where they are watched."""
        states, layers = self._run(batch, precision)
        return Shown(states, layers if self.view != View() else None)

    def states(self, batch: LanguageBatch, precision: Precision) -> TeacherStates:
        """Returns its last hidden states, (N, H), with its head."""
        return self._run(batch, precision)[0]

    def _run(self, batch: LanguageBatch, precision: Precision) -> tuple[TeacherStates, LayerOutputs]:
        input_ids = self.token_ids.to(batch.input_ids.device)[batch.input_ids]
        own = replace(batch, input_ids=input_ids)
        hidden, layers = read_layers(self.model, own, self.separation, self.view, precision)
        return TeacherStates(hidden, self.head), layers


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher whose outputs were kept, one record for each token that is learned, piece by piece."""

    signal: TokenSignal
    tokens: PackedTokens
    """The sequences that are trained on; the signal's sequences are the pieces in them."""

    def shard(self, accelerator: Accelerator) -> None:
        """Does nothing: there is no model."""

    def place(self, device: torch.device, precision: Precision) -> None:
        """Does nothing: records are moved as they are read."""

    def look(self, batch: LanguageBatch, precision: Precision) -> Shown:
        """Returns what was kept."""
        packing = self.tokens.packing
        pieces = np.concatenate([packing.members(sequence) for sequence in batch.sequences])
        return Shown(self.signal.layout.decode(self.signal.gather(pieces.tolist()), batch.input_ids.device))


def read_batch(tokens: PackedTokens, chosen: list[int], device: torch.device) -> LanguageBatch:
    """Returns the tensors of the sequences `chosen`."""
    return batch_of(tokens.batch(chosen), chosen, device)


def batch_of(packed: PackedBatch, sequences: list[int], device: torch.device) -> LanguageBatch:
    """Returns the tensors of `packed` on `device`; `sequences` are their numbers."""
    arrays = (packed.input_ids, packed.labels, packed.position_ids, packed.document_ids)
    input_ids, labels, position_ids, document_ids = (torch.from_numpy(array).to(device) for array in arrays)
    return LanguageBatch(input_ids, labels, position_ids, document_ids, sequences)


def read_layers(
    model: PreTrainedModel, batch: LanguageBatch, separation: Separation, view: View, precision: Precision
) -> tuple[Tensor, LayerOutputs]:
    """Returns the last hidden states of positions that predict what is learned, (N, H), and what `view` asks for."""
    inputs = packed_inputs(batch.input_ids, batch.position_ids, batch.document_ids, separation, model.dtype)
    outputs, layers = run_watched(model, model.base_model, inputs, view, precision)
    hidden: Tensor = outputs["last_hidden_state"]
    positions = batch.rows + batch.rows // (hidden.shape[1] - 1)  # skips the last position of each sequence before
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions), layers
