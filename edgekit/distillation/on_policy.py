"""On-policy batches: the student continues prompts from the data, and what it wrote is what the step learns from.

Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649, algorithm 1: with probability
lambda a batch is written by the student. Here lambda decides for a whole optimizer step, so that all processes agree.
No gradient flows through the writing, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.data.packing import IGNORED, PADDING, PackedBatch, PackedTokens, pack
from edgekit.data.token_store import Piece
from edgekit.distillation.config import OnPolicyConfig, Precision, WritingConfig
from edgekit.distillation.language_teacher import LanguageBatch, batch_of
from edgekit.distillation.randomness import derived_seed
from edgekit.distillation.writing import WrittenSequence, student_writes, write_sequences
from edgekit.models.source import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRITING = 13  # keeps the seeds of writing apart from all others


@dataclass(frozen=True)
class StudentWriter:
    """When and how the student writes."""

    config: OnPolicyConfig
    seed: int
    end_ids: tuple[int, ...]
    """Tokens that end a text."""
    precision: Precision

    def writes(self, step: int) -> bool:
        """Returns whether step `step`, counted from 0, learns from what the student writes."""
        return student_writes(self.config.share, self.seed, step)

    def write(
        self, model: PreTrainedModel, tokens: PackedTokens, sequences: list[int], step: int, device: torch.device
    ) -> LanguageBatch:
        """Returns the student's continuations of the prompts in `sequences`, packed.

        What is written for a document depends on the seed, the step and the document, not on what was drawn before or
        on its neighbours: a resumed run writes the same, and so does another number of processes.

        Raises:
            TrainingError: a logit is not finite.
        """
        packing = tokens.packing
        numbers = [int(piece) for row in sequences for piece in packing.members(row)]
        pieces = map(tokens.store.piece, numbers)
        prompts = [prompt_of(piece, self.config.prompt_tokens)[: packing.length - 1] for piece in pieces]
        longest = max(len(prompt) for prompt in prompts)
        settings = WritingConfig(
            max_new_tokens=min(self.config.max_new_tokens, packing.length - longest),
            temperature=self.config.temperature,
            precision=self.precision,
        )
        written = write_sequences(
            model,
            [prompt.tolist() for prompt in prompts],
            settings,
            end_ids=self.end_ids,
            seed=derived_seed(self.seed, _WRITING, step),
            numbers=numbers,
        )
        return pack_written(list(written), packing.length, tokens.pad_id, device)


def end_ids_of(loaded: LoadedModel) -> tuple[int, ...]:
    """Returns the tokens that end a text of a model: those of its generation settings, else the tokenizer's own."""
    settings = loaded.model.generation_config
    ends = None if settings is None else settings.eos_token_id
    ends = loaded.tokenizer.eos_token_id if ends is None else ends
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)


def prompt_of(piece: Piece, plain_tokens: int) -> NDArray[np.int64]:
    """Returns the tokens before the first that is learned; of a plain text at most `plain_tokens`, and at most half."""
    first = int(np.argmax(piece.learned))
    return piece.ids[: first if first > 1 else max(1, min(plain_tokens, len(piece.ids) // 2))]


def pack_written(written: list[WrittenSequence], length: int, pad_id: int, device: torch.device) -> LanguageBatch:
    """Returns texts side by side in sequences of `length` tokens; what was written is learned, prompts are not."""
    sizes = np.array([len(text.token_ids) for text in written], dtype=np.int64)
    packing = pack(sizes, length, np.random.default_rng(0))
    shape = (len(packing), length)
    input_ids, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    positions, documents = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING, dtype=np.int64)
    for row in range(len(packing)):
        start = 0
        for number, member in enumerate(packing.members(row).tolist()):
            text = written[member]
            place = (row, slice(start, start + len(text.token_ids)))
            input_ids[place], documents[place] = text.token_ids, number
            labels[place] = np.where(text.loss_mask, text.token_ids, IGNORED)
            positions[place] = np.arange(len(text.token_ids))
            start += len(text.token_ids)
        positions[row, start:] = np.arange(length - start)
    return batch_of(PackedBatch(input_ids, labels, positions, documents), [], device)
