"""Reads a finished capture by sequence and position, from mapped files that are checked before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edgekit.distillation.signal_identity import (
    DESCRIPTION_FILE,
    FORMAT,
    OFFSETS_FILE,
    SignalDescription,
    SignalIdentity,
    shard_name,
    verify_file,
)
from edgekit.distillation.token_signal import Records, TokenLayout
from edgekit.errors import ArtifactError


class TokenSignal:
    """A finished capture, read by sequence; a shard is checked against its digest when it is first read."""

    def __init__(self, path: Path, description: SignalDescription, offsets: NDArray[np.int64]) -> None:
        """Is made by `open`."""
        self.path, self._description, self.offsets = path, description, offsets
        self._shards: dict[int, Records] = {}

    @classmethod
    def open(cls, path: Path) -> TokenSignal:
        """Returns the capture in the directory `path`.

        Raises:
            ArtifactError: there is none that this edgekit reads.
            CorruptArtifactError: the list of sequences is missing or altered.
        """
        file = path / DESCRIPTION_FILE
        try:
            description = SignalDescription.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ArtifactError(f"{file}: is not a description of teacher outputs. Capture them again.") from error
        if description.format != FORMAT:
            raise ArtifactError(f"{file}: found format {description.format}, expected {FORMAT}. Capture them again.")
        verify_file(path / OFFSETS_FILE, description.files[OFFSETS_FILE])
        return cls(path, description, np.load(path / OFFSETS_FILE, allow_pickle=False))

    @property
    def identity(self) -> SignalIdentity:
        """What was captured, and from what."""
        return self._description.identity

    @property
    def layout(self) -> TokenLayout:
        """What a record looks like."""
        return self.identity.layout

    def require(self, expected: SignalIdentity) -> None:
        """Checks that this is the capture `expected`; what is kept of each token and the seed may differ.

        Raises:
            ArtifactError: it is of another teacher, other data, other sequences, another vocabulary or temperature.
        """
        for name, what in (
            ("teacher", "teacher"),
            ("data", "data set"),
            ("sequences", "set of token sequences (tokenizer, chat template, length or use_unlabelled)"),
            ("vocabulary", "vocabulary size"),
            ("vocabulary_map", "vocabulary map"),
        ):
            found, wanted = (getattr(identity, name) for identity in (self.identity, expected))
            if found != wanted:
                raise ArtifactError(
                    f"{self.path}: was captured with another {what}: found {_short(found)}, expected {_short(wanted)}. "
                    "Capture again, or pass no signal."
                )
        temperatures = (self.identity.config.temperature, expected.config.temperature)
        if temperatures[0] != temperatures[1]:
            raise ArtifactError(
                f"{self.path}: was captured at temperature {temperatures[0]}, expected {temperatures[1]}. Capture at "
                "that temperature, or distill at this one."
            )

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.offsets) - 1

    def records(self, sequence: int, start: int = 0, stop: int | None = None) -> Records:
        """Returns the records of the positions `start` to `stop` (its end) of a sequence, read from the mapped file.

        Raises:
            CorruptArtifactError: the shard is missing, truncated or altered.
            IndexError: there is no such sequence or position.
        """
        if not 0 <= sequence < len(self):
            raise IndexError(f"sequence: found {sequence}, expected 0 to {len(self) - 1}.")
        length = int(self.offsets[sequence + 1] - self.offsets[sequence])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise IndexError(f"positions of sequence {sequence}: found {start} to {stop}, expected 0 to {length}.")
        firsts = self._description.shards
        shard = int(np.searchsorted(firsts, sequence, side="right")) - 1
        base = int(self.offsets[sequence] - self.offsets[firsts[shard]])
        return self._shard(shard)[base + start : base + stop]

    def gather(self, sequences: Sequence[int]) -> Records:
        """Returns the records of whole sequences one after the other, in memory."""
        return np.concatenate([self.records(sequence) for sequence in sequences])

    def verify(self) -> None:
        """Checks every shard now.

        Raises:
            CorruptArtifactError: one is missing, truncated or altered.
        """
        for shard in range(len(self._description.shards)):
            self._shard(shard)

    def _shard(self, index: int) -> Records:
        if index not in self._shards:
            file = self.path / shard_name(index)
            verify_file(file, self._description.files[shard_name(index)])
            self._shards[index] = np.load(file, mmap_mode="r", allow_pickle=False)
        return self._shards[index]


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:16]}..." if len(text) > 16 else text
