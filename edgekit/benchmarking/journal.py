"""Keeps samples on the disk as they come, so that what was measured outlives a device that disappears."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """A file of JSON lines, one for each turn: what was measured, and its samples."""

    def __init__(self, file: Path) -> None:
        """Begins a new file with the first sample; one of an earlier run is replaced."""
        self.file = file
        self.count = 0
        """Samples in it."""

    def add(self, subject: str, samples_ns: list[int]) -> None:
        """Appends the samples of a turn, ns."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"subject": subject, "samples_ns": samples_ns})
        with self.file.open("a" if self.count else "w", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self.count += len(samples_ns)

    def discard(self) -> None:
        """Removes it: the measurement itself is kept."""
        self.file.unlink(missing_ok=True)
