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
from edgekit.errors import ModelError
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


def prompts_of(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, where: str, longest: int
) -> Iterator[Asked]:
    """Yields what stands before the first answer to a user in each conversation, where it has at most `longest` tokens.

    Other documents are passed over.

    Raises:
        DataError: the tokenizer has no chat template, or it fails.
    """
    for row, document in enumerate(documents):
        if not isinstance(document, Conversation) or document.first_answer is None:
            continue
        turns = document.messages[: document.first_answer]
        ids = encode_prompt(Conversation(turns), tokenizer, f"{where}, row {row} (counted from 0)")
        if len(ids) <= longest:
            yield Asked(ids, turns[-1].content, document.messages[document.first_answer].content)


def write_answer(
    session: GenerationSession, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], ids: list[int], most: int
) -> Written:
    """Returns the likeliest answer to a prompt of tokens `ids`, shorter than the context, of at most `most` tokens.

    Raises:
        UsageError: the prompt does not fit the context.
        ModelError: a logit is not a finite number.
    """
    room = session.context_length - len(ids)
    session.reset()
    logits = session.prefill(np.array(ids, dtype=np.int64))
    known, chosen = len(tokenizer), list[int]()  # a padded vocabulary has rows that no text belongs to
    while True:
        if not np.isfinite(logits[:known]).all():
            raise ModelError(
                "answering: found logits of the model that are not finite numbers, expected finite ones. Check its "
                "weights."
            )
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
