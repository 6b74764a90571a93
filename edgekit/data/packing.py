"""Lays pieces of documents side by side in sequences of equal length, so that little of a sequence is padding.

No document is cut here, and nothing of one is seen from another: positions start anew at each, and `separation.py`
makes a model keep them apart.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.data.token_store import TokenStore

IGNORED = -100
"""Label of a token that is not learned, as transformers' losses know it."""
PADDING = -1
"""Document number of padding."""
Integers = NDArray[np.int64]
_WINDOW = 20_000


@dataclass(frozen=True)
class Packing:
    """Which pieces lie in which sequence."""

    length: int
    """Tokens of a sequence."""
    pieces: Integers
    """Numbers of the pieces, sequence after sequence, each piece once."""
    ends: Integers
    """Where each sequence ends in `pieces`, (sequences,)."""
    padding: float
    """Share of all places that are padding, 0 to 1."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.ends)

    def members(self, index: int) -> Integers:
        """Returns the pieces of sequence `index`, from its start to its end."""
        return self.pieces[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of equal length, every array int64 (B, T)."""

    input_ids: Integers
    """Token ids."""
    labels: Integers
    """`input_ids` where a token is learned from those before it, else `IGNORED`; not shifted."""
    position_ids: Integers
    """Place of a token in its document, from 0; padding counts from 0 as well."""
    document_ids: Integers
    """Number of the document in its sequence, from 0; `PADDING` where there is none."""


@dataclass(frozen=True)
class PackedTokens:
    """The sequences of a store, read from the disk when they are asked for."""

    store: TokenStore
    packing: Packing
    pad_id: int
    """Token id of padding; it is neither learned nor seen by a document."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.packing)

    def batch(self, indices: Sequence[int]) -> PackedBatch:
        """Returns the sequences `indices`, counted from 0, as (B, T)."""
        shape = (len(indices), self.packing.length)
        batch = PackedBatch(
            input_ids=np.full(shape, self.pad_id, dtype=np.int64),
            labels=np.full(shape, IGNORED, dtype=np.int64),
            position_ids=np.zeros(shape, dtype=np.int64),
            document_ids=np.full(shape, PADDING, dtype=np.int64),
        )
        for row, index in enumerate(indices):
            start = 0
            for number, member in enumerate(self.packing.members(index).tolist()):
                piece = self.store.piece(member)
                place = (row, slice(start, start + len(piece.ids)))
                batch.input_ids[place] = piece.ids
                batch.labels[place] = np.where(piece.learned, piece.ids, IGNORED)
                batch.position_ids[place] = np.arange(len(piece.ids))
                batch.document_ids[place] = number
                start += len(piece.ids)
            batch.position_ids[row, start:] = np.arange(shape[1] - start)
        return batch


def pack_tokens(store: TokenStore, length: int, pad_id: int, *, seed: int, epoch: int = 0) -> PackedTokens:
    """Returns the sequences of one pass over a store; each epoch has another order and other neighbours.

    Raises:
        ValueError: a piece is longer than `length`.
    """
    generator = np.random.default_rng([seed, epoch])
    return PackedTokens(store, pack(store.lengths(), length, generator), pad_id)


def pack(lengths: Integers, length: int, generator: np.random.Generator, *, window: int = _WINDOW) -> Packing:
    """Returns a packing of pieces of these lengths into sequences of `length` tokens.

    Best-fit decreasing (Ding et al. 2024, https://arxiv.org/abs/2404.10830, section 3): the longest piece first, each
    into the fullest sequence that still has room. Here it runs inside windows of `window` pieces, shuffled before, and
    the sequences are shuffled after, so that long pieces are not learned before short ones.

    Raises:
        ValueError: a piece is longer than `length`, or empty.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= length:
        found = f"{int(lengths.min())} to {int(lengths.max())}"
        raise ValueError(f"lengths: found pieces of {found} tokens, expected 1 to {length}.")
    order = generator.permutation(len(lengths)).tolist()
    bins: list[list[int]] = []
    for start in range(0, len(order), window):
        bins.extend(_fit(order[start : start + window], lengths, length))
    shuffled = [bins[index] for index in generator.permutation(len(bins)).tolist()]
    pieces = np.asarray([piece for members in shuffled for piece in members], dtype=np.int64)
    ends = np.cumsum([len(members) for members in shuffled], dtype=np.int64)
    places = len(bins) * length
    return Packing(length, pieces, ends, 1 - int(lengths.sum()) / places if places else 0.0)


def _fit(window: list[int], lengths: Integers, length: int) -> list[list[int]]:
    """Returns the pieces of a window in sequences, by best-fit decreasing; equal lengths keep their order."""
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free places to the sequences that have so many
    rooms: list[int] = []  # its keys, ascending
    for piece in sorted(window, key=lambda number: -int(lengths[number])):
        size = int(lengths[piece])
        place = bisect_left(rooms, size)
        if place == len(rooms):
            free, number = length, len(bins)
            bins.append([])
        else:
            free = rooms[place]
            number = with_room[free].pop()
            if not with_room[free]:
                del with_room[free], rooms[place]
        bins[number].append(piece)
        left = free - size
        if left:
            if left not in with_room:
                insort(rooms, left)
                with_room[left] = []
            with_room[left].append(number)
    return bins
