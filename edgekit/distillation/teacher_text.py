"""Lets a language model answer the prompts of documents, part by part, and puts the answers into the documents.

A finished part is a file of the work directory, so that a killed run goes on. What is written for a document depends on
the seed and the number of its part, not on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgekit.artifact import write_atomically
from edgekit.data.conversations import encode_documents, encode_prompt
from edgekit.data.documents import Completion, Conversation, Document, Message, PlainText
from edgekit.data.prepared import PreparedData
from edgekit.data.token_store import Piece
from edgekit.distillation.config import WriteConfig
from edgekit.distillation.on_policy import end_ids_of, prompt_of
from edgekit.distillation.processes import lost_process
from edgekit.distillation.randomness import derived_seed
from edgekit.distillation.writing import write_sequences
from edgekit.errors import DataError
from edgekit.events import Event
from edgekit.models.source import LoadedModel

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from edgekit.contract import StageContext

_WRITING = 15  # keeps the seeds of this writing apart from all others
PART_ROWS = 64


@dataclass(frozen=True)
class WrittenSplit:
    """The documents of a split with what a teacher wrote in them."""

    documents: list[Document]
    empty: int
    """Documents that it wrote nothing for; they are left out."""
    cut: int
    """Texts that were cut before they ended."""


class _Said(NamedTuple):
    text: str
    ended: bool
    """False where it was cut."""


def write_documents(  # noqa: PLR0913 - what is written, by whom, and where it runs
    teacher: LoadedModel,
    data: PreparedData,
    split: str,
    config: WriteConfig,
    context: StageContext,
    folder: Path | None,
    accelerator: Accelerator,
) -> WrittenSplit:
    """Returns the documents of a split with the teacher's answers, without those it wrote nothing for.

    Finished parts are kept in `folder`, which must be of this teacher, data, split, way of writing and seed alone.

    Raises:
        DataError: the data holds no documents, the chat template is missing or fails, nothing was written at all, or
            all that was is dropped.
        UsageError: a prompt and its continuation may be longer than the teacher's context.
        TrainingError: a logit is not finite.
        EnvironmentLacksError: the disk is full.
    """
    from accelerate.utils import gather_object

    rows, done = data.rows[split], {}
    seed = derived_seed(context.seed, _WRITING, *split.encode())
    for number, documents in enumerate(_parts(data, split)):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        part = _Part(split, number, documents)
        done[number] = _answers(teacher, part, config, seed, folder)
        if accelerator.is_main_process:
            finished = min(rows, (number + 1) * PART_ROWS)
            context.events(Event("progress", "write", f"writing {split}", completed=finished, total=rows, unit="texts"))
    with lost_process("write", accelerator):
        shares: list[dict[int, list[_Said]]] = gather_object([done]) if accelerator.num_processes > 1 else [done]
    everything = {number: answers for share in shares for number, answers in share.items()}
    answers = [answer for number in sorted(everything) for answer in everything[number]]
    written = _assemble(data.documents(split), answers, config)
    if not written.documents and written.cut:
        raise DataError(
            f"{data.path}: all {written.cut} answers to '{split}' were cut at {config.max_new_tokens} tokens and are "
            "dropped. Raise max_new_tokens, or keep them (cut_answers)."
        )
    if not written.documents:
        raise DataError(
            f"{data.path}: the teacher wrote nothing for any of the {rows} prompts of '{split}', expected text. Check "
            "its chat template, or the prompts."
        )
    return written


def _assemble(documents: Iterator[Document], answers: list[_Said], config: WriteConfig) -> WrittenSplit:
    pairs = list(zip(documents, answers, strict=True))
    said = [(document, answer) for document, answer in pairs if answer.text.strip()]
    kept = [pair for pair in said if pair[1].ended or config.cut_answers == "keep"]
    return WrittenSplit(
        [answered(document, answer.text) for document, answer in kept],
        empty=len(pairs) - len(said),
        cut=sum(not answer.ended for _, answer in said),
    )


def answered(document: Document, answer: str) -> Document:
    """Returns `document` with `answer` in the place of the first thing that is learned, and nothing after it.

    The answer of a plain text is the whole text, its beginning included; that of a prompt follows its turns.
    """
    if isinstance(document, PlainText):
        return PlainText(answer)
    if isinstance(document, Completion):
        return Completion(document.prompt, answer)
    return Conversation((*document.messages[: document.first_answer], Message("assistant", answer)))


@dataclass(frozen=True)
class _Part:
    """A few documents of a split."""

    split: str
    number: int
    documents: list[Document]


def _parts(data: PreparedData, split: str) -> Iterator[list[Document]]:
    documents = data.documents(split)
    while part := list(islice(documents, PART_ROWS)):
        yield part


def _answers(teacher: LoadedModel, part: _Part, config: WriteConfig, seed: int, folder: Path | None) -> list[_Said]:
    """Returns what the teacher wrote for each document of a part, from the work directory where it is done."""
    file = None if folder is None else folder / f"part-{part.number:06d}.json"
    if file is not None and file.is_file():
        return [_Said(*kept) for kept in json.loads(file.read_text(encoding="utf-8"))]
    answers = list(_write(teacher, part, config, seed))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(answers))
    return answers


def _write(teacher: LoadedModel, part: _Part, config: WriteConfig, seed: int) -> Iterator[_Said]:
    """Yields the teacher's answers; prompts of like length are continued together."""
    tokenizer = teacher.tokenizer
    prompts = _prompts(tokenizer, part, config)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    written = write_sequences(
        teacher.model,
        [prompts[row] for row in order],
        config,
        end_ids=end_ids_of(teacher),
        seed=derived_seed(seed, part.number),
    )
    answers = dict(zip(order, written, strict=True))
    for row, document in enumerate(part.documents):
        token_ids = answers[row].token_ids
        said = token_ids if isinstance(document, PlainText) else token_ids[answers[row].loss_mask]
        yield _Said(str(tokenizer.decode(said.tolist(), skip_special_tokens=True)), answers[row].finished)


def _prompts(tokenizer: PreTrainedTokenizerBase, part: _Part, config: WriteConfig) -> list[list[int]]:
    """Returns the tokens before the answer of each document."""
    where, first = f"split '{part.split}'", part.number * PART_ROWS
    talks = (document for document in part.documents if isinstance(document, Conversation))
    waiting = [talk for talk in talks if talk.first_answer is None]
    if len(waiting) == len(part.documents):
        places = (f"{where}, row {row} (counted from 0)" for row in range(first, first + len(waiting)))
        return [encode_prompt(document, tokenizer, place) for document, place in zip(waiting, places, strict=True)]
    encoded = encode_documents(part.documents, tokenizer, where, first=first)
    pieces = [Piece(np.array(document.ids), np.array(document.learned)) for document in encoded]
    return [prompt_of(piece, config.prompt_tokens).tolist() for piece in pieces]
