"""Runs a language model over the documents of splits, a teacher beside it, and keeps what is known of each token.

Model and teacher read the same tokens, those of the model's own tokenizer. Where the model has fewer tokens than its
teacher, the teacher's probabilities are those among the model's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.artifact import Artifact
from edgekit.benchmarking.answers import Asked, judge_answers, prompts_of, write_answer
from edgekit.benchmarking.kept_states import KeptStates
from edgekit.benchmarking.language_quality import TokenScores, score_tokens
from edgekit.benchmarking.machine import usable_cores
from edgekit.benchmarking.multiple_choice import Reader, answer_questions, judge_choices
from edgekit.benchmarking.questions import QuestionsConfig, questions_digest, read_questions
from edgekit.data.conversations import EncodedDocument, encode_documents
from edgekit.data.prepared import PreparedData
from edgekit.errors import DataError, ModelError
from edgekit.events import EventSink, track
from edgekit.models.end_tokens import end_token_ids
from edgekit.models.tasks import read_task
from edgekit.models.tokenizer import load_tokenizer
from edgekit.models.vocabulary_map import teacher_token_ids
from edgekit.results import AnswersQuality, MultipleChoiceQuality
from edgekit.runtimes.generation import GenerationConfig, GenerationSession, generation_runtime_for
from edgekit.runtimes.torch_generation import TorchGenerationSession

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reading:
    """Which text is judged, and by which runtime."""

    splits: list[str]
    max_rows: int | None
    """Documents of each split, from its start; None: all."""
    max_tokens: int
    """Tokens of each document, from its start."""
    runtime: str | None = None
    """Runtime of the model; None: the one that opens such a model."""
    memory: Path | None = None
    """Directory where what the teacher made of a text is kept for the next evaluation; None: it reads all of it."""


@dataclass(frozen=True)
class TeacherReader:
    """A teacher that reads the model's tokens as its own."""

    session: GenerationSession
    token_ids: torch.Tensor
    """(V_model,), int64: the teacher's id of each of the model's tokens."""
    kept: KeptStates | None = None
    """What it made of text that it has read before."""

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Returns its logits among the model's tokens, (T, V_model)."""
        own_ids = self.token_ids[ids].numpy()
        if self.kept is not None:
            found = self.kept.logits(own_ids)
        else:
            self.session.reset()
            found = self.session.logits(own_ids)
        return torch.from_numpy(found).index_select(1, self.token_ids)


def score_documents(
    model: Artifact, teacher: Artifact | None, data: Artifact, reading: Reading, events: EventSink
) -> dict[str, list[TokenScores]]:
    """Returns split to the scores of its documents, each of the tokens that are to be learned.

    Raises:
        DataError: no such split, or it has no documents.
        ModelError: a token of the model is not one of the teacher's, or logits are not finite numbers.
        UsageError: no runtime writes with the model.
    """
    tokenizer = load_tokenizer(model.path)
    config = GenerationConfig(threads=len(usable_cores()) or 1)
    session = generation_runtime_for(model, reading.runtime).open(model, config)
    beside = None if teacher is None else open_teacher(teacher, tokenizer, config, reading.memory)
    longest = min(reading.max_tokens, read_task(model).max_length, session.context_length)
    found: dict[str, list[TokenScores]] = {}
    for name in dict.fromkeys(reading.splits):
        documents = _documents(PreparedData.open(data), name, tokenizer, reading.max_rows)
        rows = track(documents, events, stage="evaluate", text=f"reading {name}", total=len(documents), unit="texts")
        scores = [_score(document, session, beside, longest) for document in rows]
        for row, score in enumerate(scores):
            _require_numbers(score, f"split '{name}', row {row} (counted from 0)")
        found[name] = [score for score in scores if score is not None]
        if not found[name]:
            raise DataError(f"{data.path}: the split '{name}' has nothing to predict within {longest} tokens.")
    return found


def answer(
    model: Artifact, teacher: Artifact | None, config: QuestionsConfig, reading: Reading, events: EventSink
) -> MultipleChoiceQuality:
    """Returns how many questions the model answers rightly, and its teacher on the same ones.

    Raises:
        DataError: a row is wrong, or does not fit into the context.
        ModelError: a token of the model is not one of the teacher's, or logits are not finite numbers.
        UsageError: no runtime writes with the model.
    """
    questions = read_questions(config)
    tokenizer = load_tokenizer(model.path)
    settings = GenerationConfig(threads=len(usable_cores()) or 1)
    session = generation_runtime_for(model, reading.runtime).open(model, settings)

    def read(ids: list[int]) -> torch.Tensor:
        session.reset()
        return torch.from_numpy(session.logits(np.array(ids, dtype=np.int64)))

    readers: list[Reader] = [read]
    if teacher is not None:
        readers.append(open_teacher(teacher, tokenizer, settings, reading.memory).logits)
    longest = min(read_task(model).max_length, session.context_length)
    right = answer_questions(questions, readers, tokenizer, longest, events)
    beside = right[1] if teacher is not None else None
    return judge_choices(questions, right[0], beside, source_digest=questions_digest(config))


def answer_conversations(  # noqa: PLR0913 - what is asked of whom, and whom to tell
    model: Artifact, data: Artifact, reading: Reading, prompts: int, most_tokens: int, events: EventSink
) -> AnswersQuality | None:
    """Returns what the model says to the first prompts of each split of conversations; None where there is none.

    A prompt that leaves no room for an answer is passed over.

    Raises:
        DataError: the chat template is missing or fails.
        ModelError: logits are not finite numbers.
        UsageError: no runtime writes with the model.
        EnvironmentLacksError: the runtime is not installed.
    """
    opened, tokenizer = PreparedData.open(data), load_tokenizer(model.path)
    splits = [name for name in dict.fromkeys(reading.splits) if opened.forms.get(name) == "chat"]
    if not splits:
        return None
    settings = GenerationConfig(threads=len(usable_cores()) or 1)
    session = generation_runtime_for(model, reading.runtime).open(model, settings)
    asked: list[Asked] = []
    for name in splits:
        found = prompts_of(opened.documents(name), tokenizer, f"split '{name}'", session.context_length - 1)
        asked += islice(found, prompts)
    if not asked:
        return None
    ends = end_token_ids(model.path, tokenizer.eos_token_id)
    rows = track(asked, events, stage="evaluate", text="conversing", total=len(asked), unit="prompts")
    written = [write_answer(session, tokenizer, ends, one.ids, most_tokens) for one in rows]
    return judge_answers(asked, written, most_tokens)


def open_teacher(
    teacher: Artifact, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, memory: Path | None
) -> TeacherReader:
    """Returns the teacher, open; one that torch runs keeps its states in `memory`.

    Raises:
        ModelError: a token of the model is not one of the teacher's.
    """
    token_ids = teacher_token_ids(tokenizer, load_tokenizer(teacher.path))
    session = generation_runtime_for(teacher).open(teacher, config)
    if memory is None or not isinstance(session, TorchGenerationSession):
        return TeacherReader(session, token_ids)
    return TeacherReader(session, token_ids, KeptStates(session, teacher.digest, config.threads, memory))


def _documents(
    data: PreparedData, name: str, tokenizer: PreTrainedTokenizerBase, max_rows: int | None
) -> list[EncodedDocument]:
    documents = islice(data.documents(name), max_rows)
    return list(encode_documents(documents, tokenizer, f"split '{name}'"))


def _score(
    document: EncodedDocument, session: GenerationSession, teacher: TeacherReader | None, longest: int
) -> TokenScores | None:
    """Returns the scores of the tokens that are learned, each predicted from those before it; None without any."""
    ids, learned = document.ids[:longest], torch.tensor(document.learned[1:longest])
    if not bool(learned.any()):
        return None
    vocabulary = None if teacher is None else len(teacher.token_ids)
    session.reset()
    logits = torch.from_numpy(session.logits(np.array(ids, dtype=np.int64)))[:-1, :vocabulary][learned]
    targets = torch.tensor(ids[1:])[learned]
    teacher_logits = None if teacher is None else teacher.logits(ids)[:-1][learned]
    return score_tokens(logits, targets, teacher_logits)


def _require_numbers(scores: TokenScores | None, place: str) -> None:
    """Does nothing where every score is a finite number.

    Raises:
        ModelError: naming the row, and whose logits they are.
    """
    if scores is None:
        return
    whose = None if np.isfinite(scores.negative_log_likelihood).all() else "the model"
    if whose is None and scores.teacher is not None:
        found = (scores.teacher.negative_log_likelihood, scores.teacher.divergence)
        whose = None if all(np.isfinite(values).all() for values in found) else "the teacher"
    if whose is not None:
        raise ModelError(
            f"{place}: found logits of {whose} that are not finite numbers, expected finite ones. Check its weights, "
            "or use another runtime."
        )
