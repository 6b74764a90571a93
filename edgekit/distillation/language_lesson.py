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

from edgekit.data.packing import PackedTokens
from edgekit.data.separation import Separation, find_separation
from edgekit.distillation.batches import Window
from edgekit.distillation.config import Precision
from edgekit.distillation.language_capture import learned_tokens
from edgekit.distillation.language_teacher import LanguageBatch, LanguageSource, Shown, read_batch, read_layers
from edgekit.distillation.lesson import Prepared
from edgekit.distillation.matching import Matcher, Matching, View
from edgekit.distillation.on_policy import StudentWriter
from edgekit.distillation.precision import product_dtype
from edgekit.distillation.processes import sum_over_processes, sums_over_processes
from edgekit.distillation.progress import Score
from edgekit.distillation.sharding import gathered
from edgekit.distillation.token_rows import RowBuffers
from edgekit.distillation.vocabulary_head import VocabularyHead, check_head, find_head
from edgekit.distillation.vocabulary_losses import TokenTargets, VocabularyObjective, vocabulary_losses
from edgekit.distillation.vocabulary_targets import TeacherStates

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

_SHOWN_TOKENS = 16


class LanguageLearner(nn.Module):
    """A causal language model with its losses over the vocabulary, as one module."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: VocabularyObjective,
        vocabulary: int,
        *,
        precision: Precision,
        matcher: Matcher | None = None,
    ) -> None:
        """Takes the model to train; `vocabulary` is the number of tokens that its tokenizer has.

        `matcher` compares its layers with the teacher's; none: they are not compared.

        Raises:
            ModelError: its logits are not finite numbers.
            UnsupportedError: the model has no plain linear as its head, or lets packed documents see each other.
        """
        super().__init__()
        self.separation: Separation = find_separation(model)
        check_head(model, find_head(model))
        self.model = model
        self.objective = objective
        self.precision = precision
        self.matcher = matcher
        self._vocabulary = vocabulary
        self._row_buffers: RowBuffers | None = None
        self.announced: dict[str, float] = {}
        """What the trainer multiplies each sum by in this step: known before, gradients need not be scaled after."""

    def _announced_objective(self) -> VocabularyObjective:
        own = self.objective
        return replace(
            own,
            soft_targets=self.announced.get("soft_targets", own.soft_targets),
            cross_entropy=self.announced.get("cross_entropy", own.cross_entropy),
        )

    def head(self) -> VocabularyHead:
        """Returns the model's head without the rows of no token; found anew, as weights may have moved since."""
        return restricted(find_head(self.model), self._vocabulary)

    @property
    def _no_split_modules(self) -> set[str]:
        """Names of the classes whose weights FSDP gathers together: the model's layers."""
        return set(self.model._no_split_modules or ())

    def write(
        self, writer: StudentWriter, tokens: PackedTokens, passes: list[list[int]], step: int, device: torch.device
    ) -> list[LanguageBatch]:
        """Returns what the model writes for the sequences of each pass of a step.

        Sharded weights are whole while it writes: processes write texts of different lengths.
        """
        with gathered(self.model):
            return [writer.write(self.model, tokens, chosen, step, device) for chosen in passes]

    @property
    def matching(self) -> Matching:
        """What is compared of its layers."""
        return Matching() if self.matcher is None else self.matcher.matching

    def forward(
        self, batch: LanguageBatch, shown: Shown | None, objective: VocabularyObjective | None = None
    ) -> dict[str, Tensor]:
        """Returns the name of each loss to its sum, a scalar float32: over the tokens that are learned, or positions.

        `objective` stands in for the learner's own. Text that the student wrote is no example of what to say; what the
        teacher says of it, and what its layers make of it, is learned.
        """
        objective = self._announced_objective() if objective is None else objective
        if batch.is_written:
            objective = replace(objective, cross_entropy=0.0)
        taught = None if shown is None else shown.layers
        view = View() if taught is None else self.matching.student_view
        hidden, layers = read_layers(self.model, batch, self.separation, view, self.precision)
        # norms end in float32: without this the head, a third of all products, would not run in bf16
        hidden = hidden.to(product_dtype(self.precision, hidden.device))
        teacher = None if shown is None else shown.targets
        if isinstance(teacher, TeacherStates):
            teacher = replace(teacher, hidden=teacher.hidden.to(hidden.dtype))
        targets = TokenTargets(labels=batch.followers, teacher=teacher)
        if self._row_buffers is None or self._row_buffers.device != hidden.device:
            self._row_buffers = RowBuffers(self._vocabulary, hidden.device)
        sums = vocabulary_losses(hidden, self.head(), targets, objective, self._row_buffers).sums
        if self.matcher is not None and taught is not None:
            sums |= self.matcher(layers, taught, batch.in_documents, batch.document_ids)
        return sums


@dataclass(frozen=True)
class LanguageLesson:
    """What a language model learns from."""

    learner: LanguageLearner
    tokens: PackedTokens
    """Sequences to train on."""
    validation: PackedTokens
    """Sequences that decide which weights are kept."""
    teacher: LanguageSource | None = None
    writer: StudentWriter | None = None
    """Lets the student write the text of some steps; the teacher then runs beside it."""
    unit: Literal["rows", "tokens"] = field(default="tokens", init=False)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, padding included."""
        return [self.tokens.packing.length] * len(self.tokens)

    @cached_property
    def learned(self) -> np.ndarray:
        """Tokens that are learned in each sequence, (sequences,), int64."""
        return self._by_sequence(learned_tokens(self.tokens.store))

    @cached_property
    def positions(self) -> np.ndarray:
        """Tokens of each sequence, padding not included, (sequences,), int64: where layers are matched."""
        return self._by_sequence(self.tokens.store.lengths())

    def _by_sequence(self, of_piece: np.ndarray) -> np.ndarray:
        packing = self.tokens.packing
        starts = np.concatenate([[0], packing.ends[:-1]]).astype(np.int64)
        return np.add.reduceat(of_piece[packing.pieces], starts)

    def shard(self, accelerator: Accelerator) -> None:
        """Leaves each process with its share of the teacher."""
        if self.teacher is not None:
            self.teacher.shard(accelerator)

    def place(self, device: torch.device) -> None:
        """Moves the teacher to `device`."""
        if self.teacher is not None:
            self.teacher.place(device, self.learner.precision)

    def prepare(self, window: Window, step: int, accelerator: Accelerator) -> Prepared:
        """Returns the batches of a step, read when they are asked for, or all of them written by the student."""
        if self.writer is not None and self.writer.writes(step):
            written = self.learner.write(self.writer, self.tokens, window.passes, step, accelerator.device)
            own = written[: len(written) - window.repeats]
            held = [
                float(sum(len(batch.rows) for batch in own)),
                float(sum(int(batch.in_documents.sum()) for batch in own)),
            ]
            learned, positions = (int(count) for count in sums_over_processes(held, accelerator))
            soft_targets = self.learner.objective.soft_targets / max(learned, 1)
            self.learner.announced = {"soft_targets": soft_targets} | self.learner.matching.shares(positions)
            return Prepared(self.learner.announced, written)
        batches = (read_batch(self.tokens, chosen, accelerator.device) for chosen in window.passes)
        self.learner.announced = self.coefficients(window.rows)
        return Prepared(self.learner.announced, batches)

    def look(self, batch: LanguageBatch, precision: Precision) -> Shown | None:
        """Returns what the teacher shows on a batch; None without a teacher."""
        return None if self.teacher is None else self.teacher.look(batch, precision)

    def coefficients(self, chosen: list[int]) -> dict[str, float]:
        """Returns the weight of each loss over the tokens learned, or the positions, in the sequences `chosen`."""
        count = max(int(self.learned[chosen].sum()), 1)
        objective = self.learner.objective
        found = {"soft_targets": objective.soft_targets / count, "cross_entropy": objective.cross_entropy / count}
        return found | self.learner.matching.shares(int(self.positions[chosen].sum()))

    def evaluate(self, accelerator: Accelerator, precision: Precision) -> Score:
        """Returns the mean negative log likelihood of the validation tokens, nats."""
        objective = replace(self.learner.objective, soft_targets=0.0, cross_entropy=1.0)
        total, count, training = 0.0, 0, self.learner.training
        self.learner.eval()
        with torch.no_grad():
            for first in range(0, len(self.validation), accelerator.num_processes):
                row = first + accelerator.process_index
                # a sharded model needs all processes in every pass: those without a sequence of their own repeat one
                batch = read_batch(self.validation, [min(row, len(self.validation) - 1)], accelerator.device)
                found = float(self.learner(batch, None, objective)["cross_entropy"])
                if row < len(self.validation):
                    total, count = total + found, count + len(batch.rows)
        self.learner.train(training)
        return Score(
            accuracy=None,
            cross_entropy=sum_over_processes(total, accelerator) / sum_over_processes(count, accelerator),
        )

    def name(self, row: int) -> str:
        """Returns the number of a sequence."""
        return f"sequence {row}"

    def excerpt(self, row: int) -> str:
        """Returns the first token ids of a sequence."""
        return " ".join(map(str, self.tokens.batch([row]).input_ids[0, :_SHOWN_TOKENS].tolist()))


def restricted(head: VocabularyHead, vocabulary: int) -> VocabularyHead:
    """Returns `head` without the rows from `vocabulary` on, which stand for no token; nothing is copied."""
    if head.size == vocabulary:
        return head
    bias = None if head.bias is None else head.bias[:vocabulary]
    return replace(head, weight=head.weight[:vocabulary], bias=bias)
