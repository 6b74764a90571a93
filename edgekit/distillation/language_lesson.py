"""Language modelling as the training loop sees it: packed sequences, a teacher at every token, held-out perplexity.

Where tokens are stored, how they are packed and what the losses compute are matters of their own modules.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.data.packing import IGNORED, PackedTokens
from edgekit.data.separation import Separation, find_separation, packed_inputs
from edgekit.distillation.config import Precision
from edgekit.distillation.precision import autocast
from edgekit.distillation.progress import Score
from edgekit.distillation.vocabulary_head import VocabularyHead, check_head, find_head
from edgekit.distillation.vocabulary_losses import TokenTargets, VocabularyObjective, vocabulary_losses
from edgekit.distillation.vocabulary_targets import TeacherStates

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

_SHOWN_TOKENS = 16


@dataclass(frozen=True)
class LanguageBatch:
    """The tensors of one forward pass, int64 (B, T)."""

    input_ids: Tensor
    labels: Tensor
    """The token itself where it is learned, else -100; not shifted."""
    position_ids: Tensor
    document_ids: Tensor

    def followers(self) -> Tensor:
        """Returns what each position but the last of a sequence is to predict, (B * (T - 1))."""
        return self.labels[:, 1:].reshape(-1)


class LanguageLearner(nn.Module):
    """A causal language model with its losses over the vocabulary, as one module."""

    def __init__(
        self, model: PreTrainedModel, objective: VocabularyObjective, vocabulary: int, *, precision: Precision
    ) -> None:
        """Takes the model to train; `vocabulary` is the number of tokens that its tokenizer has.

        Raises:
            UnsupportedError: the model has no plain linear as its head, or lets packed documents see each other.
        """
        super().__init__()
        check_head(model, find_head(model))
        self.model = model
        self.objective = objective
        self.precision = precision
        self.separation: Separation = find_separation(model)
        self._vocabulary = vocabulary

    def head(self) -> VocabularyHead:
        """Returns the model's head without the rows of no token; found anew, as weights may have moved since."""
        return restricted(find_head(self.model), self._vocabulary)

    def forward(self, batch: LanguageBatch, teacher: TeacherStates | None) -> dict[str, Tensor]:
        """Returns the name of each loss to its sum over the tokens that are learned, a scalar float32."""
        hidden = last_hidden_states(self.model, batch, self.separation, self.precision)
        targets = TokenTargets(labels=batch.followers(), teacher=teacher, divergence_weights=_counted(batch))
        return vocabulary_losses(hidden, self.head(), targets, self.objective).sums


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

    def look(self, batch: LanguageBatch, precision: Precision) -> TeacherStates:
        """Returns its last hidden states at every position that predicts, (B * (T - 1), H)."""
        own = LanguageBatch(
            self.token_ids.to(batch.input_ids.device)[batch.input_ids],
            batch.labels,
            batch.position_ids,
            batch.document_ids,
        )
        return TeacherStates(last_hidden_states(self.model, own, self.separation, precision), self.head)


@dataclass(frozen=True)
class LanguageLesson:
    """What a language model learns from."""

    learner: LanguageLearner
    tokens: PackedTokens
    """Sequences to train on."""
    validation: PackedTokens
    """Sequences that decide which weights are kept."""
    teacher: LanguageTeacher | None = None
    unit: Literal["rows", "tokens"] = field(default="tokens", init=False)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, padding included."""
        return [self.tokens.packing.length] * len(self.tokens)

    @cached_property
    def learned(self) -> np.ndarray:
        """Tokens that are learned in each sequence, (sequences,), int64."""
        store = self.tokens.store
        sums = np.concatenate([[0], np.cumsum(store.learned, dtype=np.int64)])
        starts = np.concatenate([[0], store.ends[:-1]]).astype(np.int64)
        of_piece = sums[store.ends] - sums[starts]
        return np.array([of_piece[self.tokens.packing.members(row)].sum() for row in range(len(self.tokens))])

    def place(self, device: torch.device) -> None:
        """Moves the teacher to `device`."""
        if self.teacher is not None:
            self.teacher.model.to(device)  # type: ignore[arg-type, unused-ignore]

    def batch(self, chosen: list[int], device: torch.device) -> LanguageBatch:
        """Returns the tensors of the sequences `chosen`."""
        return read_batch(self.tokens, chosen, device)

    def look(self, batch: LanguageBatch, precision: Precision) -> TeacherStates | None:
        """Returns the teacher's hidden states; None without a teacher."""
        return None if self.teacher is None else self.teacher.look(batch, precision)

    def coefficients(self, chosen: list[int]) -> dict[str, float]:
        """Returns the weight of each loss over the tokens that are learned in the sequences `chosen`."""
        count = max(int(self.learned[chosen].sum()), 1)
        objective = self.learner.objective
        return {"soft_targets": objective.soft_targets / count, "cross_entropy": objective.cross_entropy / count}

    def evaluate(self, accelerator: Accelerator, precision: Precision) -> Score:
        """Returns the mean negative log likelihood of the validation tokens, nats."""
        totals = torch.zeros(2, dtype=torch.float64)
        training = self.learner.training
        self.learner.eval()
        with torch.inference_mode():
            for row in range(accelerator.process_index, len(self.validation), accelerator.num_processes):
                batch = read_batch(self.validation, [row], accelerator.device)
                totals += self._score(batch, precision)
        self.learner.train(training)
        if accelerator.num_processes > 1:
            totals = accelerator.reduce(totals.float().to(accelerator.device), reduction="sum").cpu().double()
        return Score(accuracy=None, cross_entropy=float(totals[0] / totals[1]))

    def name(self, row: int) -> str:
        """Returns the number of a sequence."""
        return f"sequence {row}"

    def excerpt(self, row: int) -> str:
        """Returns the first token ids of a sequence."""
        return " ".join(map(str, self.tokens.batch([row]).input_ids[0, :_SHOWN_TOKENS].tolist()))

    def _score(self, batch: LanguageBatch, precision: Precision) -> Tensor:
        """Returns the sum of the negative log likelihoods and how many there are, (2,)."""
        hidden = last_hidden_states(self.learner.model, batch, self.learner.separation, precision)
        objective = VocabularyObjective(
            soft_targets=0.0, cross_entropy=1.0, chunk_tokens=self.learner.objective.chunk_tokens
        )
        found = vocabulary_losses(hidden, self.learner.head(), TokenTargets(labels=batch.followers()), objective)
        sums = (found.sums["cross_entropy"], found.counts["cross_entropy"])
        return torch.tensor([float(value) for value in sums], dtype=torch.float64)


def read_batch(tokens: PackedTokens, chosen: list[int], device: torch.device) -> LanguageBatch:
    """Returns the tensors of the sequences `chosen`."""
    found = tokens.batch(chosen)
    arrays = (found.input_ids, found.labels, found.position_ids, found.document_ids)
    return LanguageBatch(*(torch.from_numpy(array).to(device) for array in arrays))


def last_hidden_states(
    model: PreTrainedModel, batch: LanguageBatch, separation: Separation, precision: Precision
) -> Tensor:
    """Returns the last hidden states of every position but the last of a sequence, (B * (T - 1), H)."""
    inputs = packed_inputs(batch.input_ids, batch.position_ids, batch.document_ids, separation, model.dtype)
    with autocast(precision, batch.input_ids.device):
        hidden: Tensor = model.base_model(**inputs).last_hidden_state
    return hidden[:, :-1].reshape(-1, hidden.shape[-1])


def restricted(head: VocabularyHead, vocabulary: int) -> VocabularyHead:
    """Returns `head` without the rows from `vocabulary` on, which stand for no token; nothing is copied."""
    if head.size == vocabulary:
        return head
    bias = None if head.bias is None else head.bias[:vocabulary]
    return replace(head, weight=head.weight[:vocabulary], bias=bias)


def _counted(batch: LanguageBatch) -> Tensor:
    return (batch.followers() != IGNORED).float()
