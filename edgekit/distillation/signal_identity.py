"""What a capture of token records is of, and how its directory is laid out.

    signal.json           the identity, the shards and the SHA-256 of every file
    offsets.npy           (sequences + 1) int64: the first record of each sequence, counted over all shards
    shard-00000.npy       the records of the first sequences, in order; memory-mapped when read

Making it is `signal_capture.py`'s matter, reading it `token_store.py`'s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.artifact import FileRecord, hash_file
from edgekit.distillation.config import TokenSignalConfig
from edgekit.distillation.token_signal import TokenLayout
from edgekit.errors import CorruptArtifactError

DESCRIPTION_FILE, OFFSETS_FILE = "signal.json", "offsets.npy"
FORMAT = 2
"""Of `signal.json`; format 1 is that of a classifier's logits."""
_BLOCK = 1 << 20


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


def digest_sequences(token_ids: NDArray[np.integer[Any]], ends: NDArray[np.int64]) -> str:
    """Returns the SHA-256 over sequences that lie one after the other and end at `ends`; mapped files are read once."""
    digest = hashlib.sha256(np.ascontiguousarray(ends, dtype="<i8").tobytes())
    for start in range(0, len(token_ids), _BLOCK):
        digest.update(token_ids[start : start + _BLOCK].astype("<u4").tobytes())
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
