"""Lets a language model answer prompts and looks at the answers: perplexity does not see a model that says nothing.

It always takes the likeliest token, so that the answers of two models to one prompt can be laid side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.benchmarking.statistics import wilson_interval
from edgekit.data.conversations import encode_prompt
from edgekit.data.documents import Conversation, Document
from edgekit.errors import DataError, ModelError
from edgekit.results import AnswersQuality, Exchange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edgekit.runtimes.generation import GenerationSession

_EXAMPLES = 4
_GRAM = 4


@dataclass(frozen=True)
class Asked:
    """Turns that wait for an answer."""

    ids: list[int]
    """Their tokens, ready for it."""
    prompt: str
    """The last of them, as people read it."""
    expected: str
    """The answer in the data."""


@dataclass(frozen=True)
class Written:
    """What a model answered."""

    ids: list[int]
    """Without the token that ended it."""
    text: str
    ended: bool
    """True where the model ended it by itself."""


def prompts_of(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, where: str) -> Iterator[Asked]:
    """Yields the turns before the first answer of each conversation; other documents are passed over.

    Raises:
        DataError: the tokenizer has no chat template, or it fails.
    """
    for row, document in enumerate(documents):
        if not isinstance(document, Conversation):
            continue
        place = f"{where}, row {row} (counted from 0)"
        roles = [message.role for message in document.messages]
        answers = [index for index, role in enumerate(roles) if index and role == "assistant"]
        if not answers:
            continue
        turns = document.messages[: answers[0]]
        ids = encode_prompt(Conversation(turns), tokenizer, place)
        yield Asked(ids, turns[-1].content, document.messages[answers[0]].content)


def write_answer(
    session: GenerationSession, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], ids: list[int], most: int
) -> Written:
    """Returns the likeliest answer to a prompt of tokens `ids`, of at most `most` tokens.

    Raises:
        DataError: the prompt does not fit the context.
        ModelError: a logit is not a finite number.
    """
    room = session.context_length - len(ids)
    if room < 1:
        raise DataError(
            f"found a prompt of {len(ids)} tokens, expected fewer than {session.context_length}, the context of the "
            "session. Shorten it, or evaluate with answers = 0."
        )
    session.reset()
    logits = session.prefill(np.array(ids, dtype=np.int64))
    known, chosen = len(tokenizer), list[int]()  # a padded vocabulary has rows that no text belongs to
    while True:
        if not np.isfinite(logits).all():
            raise ModelError("answering: the model's logits are not finite numbers. Check its weights.")
        token = int(logits[:known].argmax())
        if token in ends:
            break
        chosen.append(token)
        if len(chosen) >= min(most, room):
            break
        logits = session.step(token)
    text = str(tokenizer.decode(chosen, skip_special_tokens=True))
    return Written(chosen, text, token in ends)


def judge_answers(asked: Sequence[Asked], written: Sequence[Written], most: int) -> AnswersQuality:
    """Returns how many prompts were answered, how many answers ended, and how much they repeat themselves."""
    said = [answer for answer in written if answer.text.strip()]
    exchanges = [
        Exchange(prompt=one.prompt, answer=answer.text, expected=one.expected, ended=answer.ended)
        for one, answer in zip(asked, written, strict=True)
    ]
    return AnswersQuality(
        prompts=len(asked),
        answered=len(said) / len(asked),
        answered_interval=wilson_interval(len(said), len(asked)),
        ended=float(np.mean([answer.ended for answer in said])) if said else 0.0,
        repetition=float(np.mean([repetition(answer.ids) for answer in said])) if said else 0.0,
        max_tokens=most,
        examples=exchanges[:_EXAMPLES],
    )


def repetition(ids: Sequence[int]) -> float:
    """Returns the share of 4-grams of tokens that stood in the text before, 0 to 1; 0 for a text without any.

    This is `seq-rep-4` of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (arXiv:1908.04319),
    section 4: 1 - (different 4-grams / all 4-grams).
    """
    grams = [tuple(ids[start : start + _GRAM]) for start in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
