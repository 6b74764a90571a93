"""What a teacher says of a batch of packed sequences: beside the student, or as it was kept on the disk.

Both give one row for each token that is learned, in the order of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from edgekit.data.packing import IGNORED, PackedBatch, PackedTokens
from edgekit.data.separation import Separation, packed_inputs
from edgekit.distillation.config import Precision
from edgekit.distillation.precision import autocast, narrow_linears
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

    @property
    def is_written(self) -> bool:
        """True for text that the student wrote: it is no example of what to say."""
        return not self.sequences


class LanguageSource(Protocol):
    """Whatever says what the student is to say."""

    def shard(self, accelerator: Accelerator) -> None:
        """Leaves each process with its share of a model's weights."""

    def place(self, device: torch.device, precision: Precision) -> None:
        """Moves a model to `device`, where it runs with `precision` from now on."""

    def look(self, batch: LanguageBatch, precision: Precision) -> Teacher:
        """Returns what is said of the N tokens that are learned; without gradients."""


@dataclass(frozen=True)
class LanguageTeacher:
    """A teacher that runs beside the student."""

    model: PreTrainedModel
    """In evaluation mode."""
    token_ids: Tensor
    """(V_student,), int64: its id of each of the student's tokens."""
    separation: Separation

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

    def look(self, batch: LanguageBatch, precision: Precision) -> TeacherStates:
        """Returns its last hidden states, (N, H), with its head."""
        input_ids = self.token_ids.to(batch.input_ids.device)[batch.input_ids]
        own = LanguageBatch(input_ids, batch.labels, batch.position_ids, batch.document_ids)
        return TeacherStates(last_hidden_states(self.model, own, self.separation, precision), self.head)


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

    def look(self, batch: LanguageBatch, precision: Precision) -> Teacher:
        """Returns what was kept."""
        packing = self.tokens.packing
        pieces = np.concatenate([packing.members(sequence) for sequence in batch.sequences])
        return self.signal.layout.decode(self.signal.gather(pieces.tolist()), batch.input_ids.device)


def read_batch(tokens: PackedTokens, chosen: list[int], device: torch.device) -> LanguageBatch:
    """Returns the tensors of the sequences `chosen`."""
    return batch_of(tokens.batch(chosen), chosen, device)


def batch_of(packed: PackedBatch, sequences: list[int], device: torch.device) -> LanguageBatch:
    """Returns the tensors of `packed` on `device`; `sequences` are their numbers."""
    arrays = (packed.input_ids, packed.labels, packed.position_ids, packed.document_ids)
    input_ids, labels, position_ids, document_ids = (torch.from_numpy(array).to(device) for array in arrays)
    return LanguageBatch(input_ids, labels, position_ids, document_ids, sequences)


def last_hidden_states(
    model: PreTrainedModel, batch: LanguageBatch, separation: Separation, precision: Precision
) -> Tensor:
    """Returns the last hidden states of the positions that predict what is learned, (N, H)."""
    inputs = packed_inputs(batch.input_ids, batch.position_ids, batch.document_ids, separation, model.dtype)
    with autocast(precision, batch.input_ids.device):
        hidden: Tensor = model.base_model(**inputs).last_hidden_state
    positions = batch.rows + batch.rows // (hidden.shape[1] - 1)  # skips the last position of each sequence before
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
