"""Turns texts into token ids and token ids into batches. Nothing here knows models, files or splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
# Batches of like length come from sorting windows of this many batches: random enough to train on, little padding.
_WINDOW = 50


def encode(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    max_length: int,
    *,
    allow_empty: bool = False,
    where: str | Sequence[str] = "texts",
) -> list[list[int]]:
    """Returns the token ids of each text: special tokens added, truncated to `max_length`, not padded.

    Takes a transformers tokenizer or the bare one of the tokenizers library, and leaves its truncation and padding
    as it found them. `where` names the texts in an error: all of them, or each.

    Raises:
        DataError: a text has no token but special ones, unless `allow_empty`.
    """
    backend = _backend(tokenizer)
    truncation, padding = backend.truncation, backend.padding
    backend.no_padding()
    backend.enable_truncation(max_length)
    ids: list[list[int]] = []
    try:
        for start in range(0, len(texts), _CHUNK):
            for encoding in backend.encode_batch(list(texts[start : start + _CHUNK])):
                if not allow_empty and all(encoding.special_tokens_mask):
                    row = len(ids)
                    place = f"{where}, row {row} (counted from 0)" if isinstance(where, str) else where[row]
                    raise DataError(
                        f"{place}: found a text without any token, {_shorten(texts[row])}; expected at least one. "
                        "Remove the row from the data."
                    )
                ids.append(list(encoding.ids))
    finally:
        _restore(backend, truncation, padding)
    return ids


def length_buckets(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator | None = None
) -> list[list[int]]:
    """Returns row numbers in batches of at most `batch_size` rows of similar length; every row is in exactly one.

    Without a generator the batches go from short to long. With one, rows are shuffled, sorted by length inside
    windows of 50 batches, and the batches shuffled: what it draws decides alone.

    Raises:
        ValueError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: found {batch_size}, expected at least 1.")
    if generator is None:
        rows = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
        return _cut(rows, batch_size)
    shuffled = generator.permutation(len(lengths)).tolist()
    batches: list[list[int]] = []
    for window in _cut(shuffled, batch_size * _WINDOW):
        batches.extend(_cut(sorted(window, key=lambda row: lengths[row]), batch_size))
    return [batches[index] for index in generator.permutation(len(batches)).tolist()]


def pad(
    ids: Sequence[Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns `input_ids` and `attention_mask`, both int64 (B, T), padded on the right.

    T is the longest row of the batch, or `length`.

    Raises:
        ValueError: a row is longer than `length`.
    """
    longest = max((len(row) for row in ids), default=0)
    width = longest if length is None else length
    if longest > width:
        raise ValueError(f"length: found a row of {longest} tokens, expected at most {width}.")
    input_ids = np.full((len(ids), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(ids), width), dtype=np.int64)
    for index, row in enumerate(ids):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _restore(backend: Tokenizer, truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
    if truncation is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**truncation)
    if padding is not None:
        backend.enable_padding(**padding)


def _shorten(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _backend(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> Tokenizer:
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend
