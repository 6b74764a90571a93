"""Runs a teacher over the tokens of a split and keeps what it says of each one that is learned.

Records belong to the pieces of documents, not to the sequences that these are packed into: a capture serves any
packing, batch size and seed of a training. Files and processes are `signal_capture.py`'s matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.artifact import Artifact
from edgekit.data.packing import PackedTokens, pack
from edgekit.data.token_store import TokenStore
from edgekit.distillation.config import CaptureConfig, TokenSignalConfig
from edgekit.distillation.language_teacher import LanguageTeacher, read_batch
from edgekit.distillation.randomness import generator
from edgekit.distillation.signal_capture import SHARD_TOKENS, CapturePlan, capture_shards
from edgekit.distillation.signal_identity import SignalIdentity, digest_sequences
from edgekit.distillation.token_signal import Records
from edgekit.errors import TrainingError

_DRAWING = 14  # keeps the draws of a capture apart from all other random numbers
_SMALLEST_SHARD, _SHARDS = 4096, 64


@dataclass(frozen=True)
class Reading:
    """What is read, and in whose tokens."""

    store: TokenStore
    """The pieces of the split."""
    token_ids: Tensor
    """(V,), int64: the teacher's id of each token of the vocabulary that the pieces are in."""
    pad_id: int
    length: int
    """Tokens of a sequence."""


def capture_plan(
    teacher: Artifact, data_digest: str, reading: Reading, config: TokenSignalConfig, seed: int
) -> CapturePlan:
    """Returns what is to be captured, and so what a finished capture is of.

    Raises:
        UsageError: a record would be above 300 bytes.
    """
    store, token_ids = reading.store, reading.token_ids
    same = torch.equal(token_ids, torch.arange(len(token_ids)))
    identity = SignalIdentity(
        teacher=teacher.digest,
        data=data_digest,
        sequences=digest_sequences(store.tokens, store.ends),
        vocabulary=len(token_ids),
        vocabulary_map=None if same else hashlib.sha256(token_ids.numpy().tobytes()).hexdigest(),
        config=config,
        seed=seed,
    )
    lengths = learned_tokens(store)
    identity.layout  # noqa: B018 - checks the size of a record before anything runs
    shard_tokens = min(SHARD_TOKENS, max(_SMALLEST_SHARD, int(lengths.sum()) // _SHARDS))
    return CapturePlan(identity, lengths, shard_tokens)


def learned_tokens(store: TokenStore) -> np.ndarray:
    """Returns how many tokens are learned in each piece, (pieces,), int64."""
    sums = np.concatenate([[0], np.cumsum(store.learned, dtype=np.int64)])
    return np.diff(sums[store.ends], prepend=0)


def capture_tokens(  # noqa: PLR0913 - whose words, of what, how, where, and whom to tell
    teacher: LanguageTeacher,
    reading: Reading,
    plan: CapturePlan,
    config: CaptureConfig,
    folder: Path,
    tell: Callable[[int, int], None],
) -> None:
    """Makes the shards of `plan` in `folder`, together with any other process that does; returns when all are there.

    Raises:
        TrainingError: a logit is not finite; names the pieces.
        EnvironmentLacksError: the disk is full or not writable; finished shards are kept.
    """
    with torch.no_grad():
        capture_shards(folder, plan, lambda pieces: _records(teacher, reading, plan, config, pieces), tell)


def _records(
    teacher: LanguageTeacher, reading: Reading, plan: CapturePlan, config: CaptureConfig, pieces: range
) -> Records:
    """Returns the records of a shard, piece after piece; the pieces are packed while the teacher reads them."""
    lengths = reading.store.lengths()[pieces.start : pieces.stop]
    packing = pack(lengths, reading.length, np.random.default_rng(0))
    tokens = PackedTokens(reading.store, replace(packing, pieces=packing.pieces + pieces.start), reading.pad_id)
    layout, draws = plan.identity.layout, generator(plan.identity.seed, _DRAWING, pieces.start)
    language, device = config.language, next(teacher.model.parameters()).device
    found = []
    for start in range(0, len(tokens), language.batch_size):
        chosen = list(range(start, min(start + language.batch_size, len(tokens))))
        states = teacher.states(read_batch(tokens, chosen, device), config.precision)
        try:
            found.append(layout.encode(states.hidden, states.head, draws, chunk_tokens=language.chunk_tokens))
        except TrainingError as error:
            raise TrainingError(f"capture: pieces {pieces.start} to {pieces.stop - 1} of the text: {error}") from error
    counts = plan.lengths[pieces.start : pieces.stop]
    ends = np.empty_like(counts)
    ends[packing.pieces] = np.cumsum(counts[packing.pieces])
    places = [np.arange(end - count, end) for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]
    records: Records = np.concatenate(found)[np.concatenate(places)]
    return records
