"""Lets a language model answer the prompts of documents, part by part, and puts the answers into the documents.

A finished part is a file of the work directory, so that a killed run goes on. What is written for a document depends on
the seed and the number of its part, not on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import write_atomically
from edgekit.data.conversations import encode_documents
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

    from edgekit.contract import StageContext

_WRITING = 15  # keeps the seeds of this writing apart from all others
PART_ROWS = 64


def write_documents(
    teacher: LoadedModel, data: PreparedData, config: WriteConfig, context: StageContext, accelerator: Accelerator
) -> list[Document]:
    """Returns the documents of the split `train` with the teacher's answers, without those it wrote nothing for.

    Raises:
        DataError: the data holds no documents, or nothing was written at all.
        UsageError: a prompt and its continuation may be longer than the teacher's context.
        TrainingError: a logit is not finite.
        EnvironmentLacksError: the disk is full.
    """
    from accelerate.utils import gather_object

    rows, done = data.rows["train"], {}
    folder = None if context.work_directory is None else context.work_directory / "written"
    for number, part in enumerate(_parts(data)):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        done[number] = _answers(teacher, part, number, config, context.seed, folder)
        if accelerator.is_main_process:
            finished = min(rows, (number + 1) * PART_ROWS)
            context.events(Event("progress", "write", "writing", completed=finished, total=rows, unit="texts"))
    with lost_process("write", accelerator):
        shares: list[dict[int, list[str]]] = gather_object([done]) if accelerator.num_processes > 1 else [done]
    everything = {number: texts for share in shares for number, texts in share.items()}
    answers = (answer for number in sorted(everything) for answer in everything[number])
    found = [answered(*pair) for pair in zip(data.documents("train"), answers, strict=True) if pair[1].strip()]
    if not found:
        raise DataError(
            f"{data.path}: the teacher wrote nothing for any of the {rows} prompts of 'train', expected text. Check "
            "its chat template, or the prompts."
        )
    return found


def answered(document: Document, answer: str) -> Document:
    """Returns `document` with `answer` in the place of the first thing that is learned, and nothing after it.

    The answer of a plain text is the whole text, its beginning included.
    """
    if isinstance(document, PlainText):
        return PlainText(answer)
    if isinstance(document, Completion):
        return Completion(document.prompt, answer)
    first = next(
        index for index, message in enumerate(document.messages) if index and message.role == "assistant"
    )  # one that begins a conversation answers nothing
    return Conversation((*document.messages[:first], Message("assistant", answer)))


def _parts(data: PreparedData) -> Iterator[list[Document]]:
    documents = data.documents("train")
    while part := list(islice(documents, PART_ROWS)):
        yield part


def _answers(  # noqa: PLR0913 - what a part depends on
    teacher: LoadedModel, part: list[Document], number: int, config: WriteConfig, seed: int, folder: Path | None
) -> list[str]:
    """Returns what the teacher wrote for each document of a part, from the work directory where it is done."""
    file = None if folder is None else folder / f"part-{number:06d}.json"
    if file is not None and file.is_file():
        kept: list[str] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    answers = list(_write(teacher, part, number, config, seed))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(answers))
    return answers


def _write(teacher: LoadedModel, part: list[Document], number: int, config: WriteConfig, seed: int) -> Iterator[str]:
    """Yields the teacher's answers; prompts of like length are continued together."""
    tokenizer = teacher.tokenizer
    encoded = encode_documents(part, tokenizer, "split 'train'", first=number * PART_ROWS)
    pieces = [Piece(np.array(document.ids), np.array(document.learned)) for document in encoded]
    prompts = [prompt_of(piece, config.prompt_tokens).tolist() for piece in pieces]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    written = write_sequences(
        teacher.model,
        [prompts[row] for row in order],
        config,
        end_ids=end_ids_of(teacher),
        seed=derived_seed(seed, _WRITING, number),
    )
    answers = dict(zip(order, written, strict=True))
    for row, document in enumerate(part):
        token_ids = answers[row].token_ids
        said = token_ids if isinstance(document, PlainText) else token_ids[answers[row].loss_mask]
        yield str(tokenizer.decode(said.tolist(), skip_special_tokens=True))
