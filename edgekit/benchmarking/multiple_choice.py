"""Lets a language model choose among answers: the one whose text it holds likeliest, for its length.

The score of a choice is its log-likelihood after the question over its length in bytes of UTF-8, which no tokenizer
changes: the `acc_norm` of EleutherAI's evaluation harness (Gao et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.benchmarking.questions import Question
from edgekit.benchmarking.statistics import paired_change_interval, wilson_interval
from edgekit.data.conversations import encode_choice
from edgekit.errors import DataError, ModelError
from edgekit.events import EventSink, track
from edgekit.results import MultipleChoiceQuality

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reader = Callable[[list[int]], Tensor]
"""Tokens (T,) to the logits after each, (T, V)."""
Right = NDArray[np.bool_]


def answer_questions(
    questions: Sequence[Question],
    readers: Sequence[Reader],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    events: EventSink,
) -> list[Right]:
    """Returns for each reader whether it chose right, (Q,) bool; all read the same tokens.

    Raises:
        DataError: a question with a choice has more than `longest` tokens, or they cannot be told apart in tokens.
        ModelError: logits are not finite numbers.
    """
    rows = track(questions, events, stage="evaluate", text="answering", total=len(questions), unit="questions")
    right = [
        [_choose(question, reader, tokenizer, longest) == question.answer for reader in readers] for question in rows
    ]
    return [np.array(column, dtype=np.bool_) for column in zip(*right, strict=True)]


def judge_choices(
    questions: Sequence[Question], right: Right, teacher_right: Right | None, *, source_digest: str
) -> MultipleChoiceQuality:
    """Returns the share of questions answered rightly, with its interval and the change since the teacher."""
    quality = MultipleChoiceQuality(
        accuracy=float(right.mean()),
        accuracy_interval=wilson_interval(int(right.sum()), len(right)),
        questions=len(right),
        chance=float(np.mean([1 / len(question.choices) for question in questions])),
        source_digest=source_digest,
    )
    if teacher_right is None:
        return quality
    return quality.model_copy(
        update={
            "teacher_accuracy": float(teacher_right.mean()),
            "accuracy_change": (int(right.sum()) - int(teacher_right.sum())) / len(right),
            "accuracy_change_interval": paired_change_interval(right, teacher_right),
        }
    )


def choice_score(logits: Tensor, ids: Sequence[int], learned: Sequence[bool], length_bytes: int) -> float:
    """Returns the log-likelihood of the tokens marked `learned` over `length_bytes`, nats a byte.

    `logits` (T, V) follow each of the tokens `ids` (T,); a token is predicted from those before it. In float64.
    """
    marked = torch.tensor(learned[1:])
    logs = torch.log_softmax(logits[:-1][marked].double(), dim=-1)
    targets = torch.tensor(list(ids[1:]))[marked]
    return float(logs.gather(1, targets[:, None]).sum()) / length_bytes


def _choose(question: Question, reader: Reader, tokenizer: PreTrainedTokenizerBase, longest: int) -> int:
    """Returns the position of the choice with the highest score; of equal ones the first."""

    def score(position: int, choice: str) -> float:
        encoded = encode_choice(question.prompt, f" {choice}", tokenizer, question.place)
        if len(encoded.ids) > longest:
            raise DataError(
                f"{question.place}: choice {position}: found {len(encoded.ids)} tokens with the question, expected at "
                f"most {longest}, the model's context. Shorten the question or remove the row."
            )
        return choice_score(reader(encoded.ids), encoded.ids, encoded.learned, len(choice.encode()))

    scores = list(starmap(score, enumerate(question.choices)))
    if any(map(math.isnan, scores)):
        raise ModelError(
            f"{question.place}: found logits of the model or its teacher that are not finite numbers, expected finite "
            "ones. Check the weights, or use another runtime."
        )
    return scores.index(max(scores))
