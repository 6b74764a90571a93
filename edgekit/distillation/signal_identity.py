"""What a capture of token records is of, and how its directory is laid out.

    signal.json           the identity, the shards and the SHA-256 of every file
    offsets.npy           (sequences + 1) int64: the first record of each sequence, counted over all shards
    shard-00000.npy       the records of the first sequences, in order; memory-mapped when read

Making it is `signal_capture.py`'s matter, reading it `token_store.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.artifact import FileRecord, hash_file
from edgekit.distillation.token_signal import TokenLayout, TokenSignalConfig
from edgekit.errors import CorruptArtifactError

DESCRIPTION_FILE, OFFSETS_FILE = "signal.json", "offsets.npy"
FORMAT = 2
"""Of `signal.json`; format 1 is that of a classifier's logits."""


class SignalIdentity(BaseModel):
    """All that decides what a capture holds: two captures with equal identities hold the same records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    """Digest of the teacher."""
    data: str
    """Digest of the data."""
    sequences: str
    """Digest of the token sequences, from `digest_sequences`."""
    vocabulary: int
    """Tokens of the vocabulary that ids are of."""
    vocabulary_map: str | None = None
    """Digest of the map from it to the teacher's vocabulary; none: they are the same."""
    config: TokenSignalConfig
    seed: int = 0
    """Decides what is drawn."""

    @property
    def layout(self) -> TokenLayout:
        """What a record looks like."""
        return TokenLayout(self.config, self.vocabulary)


class SignalDescription(BaseModel):
    """The content of `signal.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    identity: SignalIdentity
    bytes_per_token: int
    shards: list[int]
    """The first sequence of each shard."""
    files: dict[str, FileRecord]


def digest_sequences(sequences: Sequence[NDArray[np.int64]], starts: Sequence[NDArray[np.int64]] | None = None) -> str:
    """Returns the SHA-256 over token ids and, where sequences hold several documents, where these start."""
    digest = hashlib.sha256()
    for index, token_ids in enumerate(sequences):
        begin = np.zeros(1, dtype=np.int64) if starts is None else np.asarray(starts[index], dtype=np.int64)
        for part in (token_ids, begin):
            digest.update(np.int64(len(part)).tobytes())
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


def shard_name(index: int) -> str:
    """Returns the name of the file of a shard."""
    return f"shard-{index:05d}.npy"


def verify_file(file: Path, record: FileRecord) -> None:
    """Checks size and digest of a file.

    Raises:
        CorruptArtifactError: it is missing, truncated or altered.
    """
    if not file.is_file():
        raise CorruptArtifactError(f"{file}: missing. The teacher's outputs are not whole: capture them again.")
    size = file.stat().st_size
    if size != record.bytes:
        raise CorruptArtifactError(
            f"{file}: found {size} bytes, expected {record.bytes}. It is truncated or altered: capture it again."
        )
    if hash_file(file) != record.sha256:
        raise CorruptArtifactError(f"{file}: its SHA-256 is not the one written down. Capture it again.")
