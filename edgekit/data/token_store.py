"""Keeps the tokens of splits on the disk, mapped into memory: data may be larger than memory.

Documents are tokenized once for each data, tokenizer and settings; a kill loses at most a few thousand of them. A
document longer than a sequence becomes several pieces. Which pieces share a sequence is `packing.py`'s matter.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.artifact import hash_json, write_atomically
from edgekit.data.conversations import EncodedDocument, encode_documents
from edgekit.data.prepared import PreparedData
from edgekit.errors import CorruptArtifactError, DataError, EnvironmentLacksError
from edgekit.events import Event, EventSink, ignore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LongDocuments = Literal["cut", "skip", "error"]
_DESCRIPTION_FILE = "tokens.json"
_FORMAT = 1
_CHECKPOINT = 2000


@dataclass(frozen=True)
class TokenSettings:
    """How documents become pieces of at most so many tokens."""

    length: int
    """Tokens of a sequence: at least 2."""
    long_documents: LongDocuments = "cut"
    """What is done with a document longer than `length`: `cut` it into pieces, each beginning with the last token of
    the one before, so that every token is learned once; `skip` it; or `error`."""

    def __post_init__(self) -> None:
        """Refuses a length in which nothing can be learned from anything."""
        if self.length < 2:
            raise ValueError(f"length: found {self.length}, expected at least 2 tokens.")


class StoreDescription(BaseModel):
    """The content of `tokens.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = _FORMAT
    key: str
    """Digest of data, splits, tokenizer and settings."""
    dtype: Literal["uint16", "uint32"]
    """Type of a stored token id."""
    documents: int = 0
    """Documents read."""
    long_documents: int = 0
    """Documents longer than a sequence: cut or skipped."""
    pieces: int = 0
    """Pieces stored."""
    tokens: int = 0
    """Tokens stored; the first of a piece that continues another is stored twice."""
    learned: int = 0
    """Tokens that are learned."""


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one."""

    ids: NDArray[np.int64]
    """Token ids, (n,)."""
    learned: NDArray[np.bool_]
    """Which of them are learned, (n,); the first never."""


@dataclass(frozen=True)
class TokenStore:
    """Pieces of documents in files that are mapped into memory: a piece that is read touches its own pages alone."""

    description: StoreDescription
    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    """Token ids of all pieces, one after the other."""
    learned: NDArray[np.uint8]
    """1 where a token is learned, in step with `tokens`."""
    ends: NDArray[np.int64]
    """Where each piece ends in `tokens`."""

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Returns the store in the directory `path`.

        Raises:
            CorruptArtifactError: a file is missing, or of another size than the description says.
        """
        try:
            text = (path / _DESCRIPTION_FILE).read_text(encoding="utf-8")
            description = StoreDescription.model_validate_json(text)
        except (OSError, ValidationError) as error:
            raise CorruptArtifactError(f"{path}: holds no tokens ({error}). Remove it; it is made again.") from error
        arrays: dict[str, Any] = {}
        for name, expected in _sizes(description).items():
            file = path / f"{name}.bin"
            dtype = _dtypes(description)[name]
            found = file.stat().st_size if file.is_file() else None
            if found != expected:
                raise CorruptArtifactError(
                    f"{file}: found {found} bytes, expected {expected}. Remove {path}; it is made again."
                )
            arrays[name] = np.memmap(file, dtype=dtype, mode="r") if expected else np.empty(0, dtype)
        return cls(description, **arrays)

    def __len__(self) -> int:
        """Returns the number of pieces."""
        return len(self.ends)

    def lengths(self) -> NDArray[np.int64]:
        """Returns the number of tokens of each piece, (pieces,)."""
        return np.diff(self.ends, prepend=0)

    def piece(self, index: int) -> Piece:
        """Returns a piece; `index` counts from 0."""
        start = int(self.ends[index - 1]) if index else 0
        end = int(self.ends[index])
        return Piece(self.tokens[start:end].astype(np.int64), self.learned[start:end].astype(np.bool_))


def open_tokens(  # noqa: PLR0913 - what a store depends on, and whom to tell
    folder: Path,
    data: PreparedData,
    splits: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: TokenSettings,
    events: EventSink = ignore,
) -> TokenStore:
    """Returns the tokens of a split, or of several one after the other, made now or taken from `folder`.

    Each key has a directory of its own there. A store appears whole or not at all. One that was being written when the
    process died is continued. Of several processes on one machine, one makes it and the others wait.

    Raises:
        DataError: there is no such split, a document has nothing to learn, or, with `error`, one is too long.
        CorruptArtifactError: the store that is there is not whole.
        EnvironmentLacksError: the disk is full or not writable.
    """
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    key = store_key(data, splits, tokenizer, settings)
    path = folder / key[:20]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f".{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():  # another process may have made it in the meantime
                    partial = folder / f".{path.name}.partial"
                    partial.mkdir(exist_ok=True)
                    _write(partial, _Work(data, splits, tokenizer, settings, key, events))
                    partial.rename(path)
        except OSError as error:
            raise EnvironmentLacksError(
                f"{path}: could not be written ({error.strerror or error}). What was written is kept: free disk space, "
                "then run the same command again."
            ) from error
    return TokenStore.open(path)


def store_key(
    data: PreparedData, splits: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TokenSettings
) -> str:
    """Returns a digest that changes when data, splits, tokenizer, chat template or settings do."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document.update(padding=None, truncation=None)
    return hash_json(
        {
            "format": _FORMAT,
            "data": data.digest,
            "split": "+".join(splits),
            "tokenizer": document,
            "template": str(tokenizer.chat_template),
            "end": tokenizer.eos_token_id,
            "length": settings.length,
            "long_documents": settings.long_documents,
        }
    )


@dataclass(frozen=True)
class _Work:
    data: PreparedData
    splits: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    settings: TokenSettings
    key: str
    events: EventSink

    @property
    def name(self) -> str:
        """What messages call the splits."""
        return " and ".join(self.splits)

    def encoded(self, done: int) -> Iterator[tuple[EncodedDocument, str]]:
        """Yields the documents of all splits after the first `done`, each with its place."""
        for split in self.splits:
            first, done = min(done, self.data.rows[split]), max(0, done - self.data.rows[split])
            documents = islice(self.data.documents(split), first, None)
            where = f"split '{split}'"
            for row, document in enumerate(encode_documents(documents, self.tokenizer, where, first=first), first):
                yield document, f"{where}, row {row} (counted from 0)"


def _write(partial: Path, work: _Work) -> None:
    """Writes all files of a store into `partial`, going on after what is there."""
    state = _resume(partial, work)
    rows = sum(work.data.rows[split] for split in work.splits)
    encoded = work.encoded(state.documents)
    files: dict[str, BinaryIO] = {name: (partial / f"{name}.bin").open("ab") for name in _dtypes(state)}
    try:
        while batch := list(islice(encoded, _CHECKPOINT)):
            for document, place in batch:
                pieces = _pieces(document, place, work.settings)
                too_long = state.long_documents + (len(document.ids) > work.settings.length)
                state = _append(files, state, pieces).model_copy(update={"long_documents": too_long})
            _save(partial, files, state)
            work.events(
                Event("progress", text=f"tokenizing {work.name}", completed=state.documents, total=rows, unit="texts")
            )
    finally:
        for file in files.values():
            file.close()
    if state.pieces == 0:
        raise DataError(
            f"{work.name}: all {state.documents} documents have more than {work.settings.length} tokens and "
            "were skipped. Raise the length, or cut long documents."
        )


def _resume(partial: Path, work: _Work) -> StoreDescription:
    """Returns how far an earlier run got, after cutting its files to that; a run for another key starts over."""
    size = max(work.tokenizer.get_vocab().values()) + 1
    fresh = StoreDescription(key=work.key, dtype="uint16" if size <= 2**16 else "uint32")
    try:
        text = (partial / _DESCRIPTION_FILE).read_text(encoding="utf-8")
        state = StoreDescription.model_validate_json(text)
        sizes = {partial / f"{name}.bin": size for name, size in _sizes(state).items()}
        if state.key == work.key and all(file.stat().st_size >= size for file, size in sizes.items()):
            for file, size in sizes.items():
                os.truncate(file, size)
            return state
    except (OSError, ValidationError):
        pass
    shutil.rmtree(partial)
    partial.mkdir()
    return fresh


def _pieces(document: EncodedDocument, place: str, settings: TokenSettings) -> list[EncodedDocument]:
    """Returns the parts of a document, and none for one that is skipped or has nothing to learn in it."""
    length = settings.length
    if len(document.ids) <= length:
        return [document]
    if settings.long_documents == "error":
        raise DataError(
            f"{place}: found {len(document.ids)} tokens, expected at most "
            f"{length}. Shorten it, raise the length, or cut or skip long documents."
        )
    if settings.long_documents == "skip":
        return []
    starts = range(0, len(document.ids) - 1, length - 1)
    cut = [(document.ids[start : start + length], document.learned[start : start + length]) for start in starts]
    return [EncodedDocument(ids, [False, *learned[1:]]) for ids, learned in cut if any(learned[1:])]


def _append(files: dict[str, BinaryIO], state: StoreDescription, pieces: list[EncodedDocument]) -> StoreDescription:
    """Writes the pieces of one document and returns how far the store is."""
    dtypes = _dtypes(state)
    tokens, learned = state.tokens, state.learned
    for piece in pieces:
        tokens += len(piece.ids)
        learned += sum(piece.learned)
        values = {"tokens": piece.ids, "learned": piece.learned, "ends": [tokens]}
        for name, file in files.items():
            file.write(np.asarray(values[name], dtype=dtypes[name]).tobytes())
    changes = {"documents": state.documents + 1, "pieces": state.pieces + len(pieces)}
    return state.model_copy(update={**changes, "tokens": tokens, "learned": learned})


def _save(partial: Path, files: dict[str, BinaryIO], state: StoreDescription) -> None:
    """Makes what was written so far survive a kill."""
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    write_atomically(partial / _DESCRIPTION_FILE, state.model_dump_json(indent=2) + "\n")


def _dtypes(description: StoreDescription) -> dict[str, np.dtype[Any]]:
    return {"tokens": np.dtype(description.dtype), "learned": np.dtype(np.uint8), "ends": np.dtype(np.int64)}


def _sizes(description: StoreDescription) -> dict[str, int]:
    """Returns the bytes of each file."""
    counts = {"tokens": description.tokens, "learned": description.tokens, "ends": description.pieces}
    return {name: counts[name] * dtype.itemsize for name, dtype in _dtypes(description).items()}
