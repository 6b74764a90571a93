"""A teacher's logits on text that it has read before, without reading it again.

A build compares half a dozen models with one teacher on the same tokens. Kept are the states that the teacher's output
layer reads, (T, H) float32: a hundredth of its logits at a vocabulary of 49,152, and that layer makes the same logits
of them again, to the bit. It knows sessions of torch and a directory, not what the logits are for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import hash_json
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.runtimes.torch_generation import TorchGenerationSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_BYTES = 2 << 30
"""What one directory holds at most; text beyond it is read again each time."""


@dataclass(frozen=True)
class KeptStates:
    """The states of one teacher in a directory; a file is named by all that its content depends on."""

    session: TorchGenerationSession
    digest: str
    """The teacher's."""
    threads: int
    directory: Path
    _versions: str = field(init=False)

    def __post_init__(self) -> None:
        """Notes what else the last bit depends on: the versions of the libraries, and the processor."""
        from importlib.metadata import version

        libraries = "/".join(version(name) for name in ("torch", "transformers"))
        object.__setattr__(self, "_versions", f"{libraries} on {machine_fingerprint().cpu}")

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes `ids` (T,) as a new text and returns the logits of each, (T, V)."""
        file = self.directory / f"{self._name(ids)}.npy"
        # a file that is gone, cut short or not one at all is only a text to be read again
        with suppress(OSError, ValueError, EOFError):
            return self.session.head_logits(np.load(file, allow_pickle=False))
        self.session.reset()
        logits, states = self.session.logits_and_states(ids)
        if states is not None:
            self._keep(file, states)
        return logits

    def _name(self, ids: NDArray[np.int64]) -> str:
        return hash_json([self.digest, self._versions, self.threads, ids.tolist()])[:32]

    def _keep(self, file: Path, states: NDArray[np.float32]) -> None:
        """Writes the states, all or nothing; a full disk keeps nothing and stops nothing."""
        part = file.with_suffix(".partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if sum(other.stat().st_size for other in self.directory.iterdir()) + states.nbytes > LARGEST_BYTES:
                return
            with part.open("wb") as stream:
                np.save(stream, states, allow_pickle=False)
            part.rename(file)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
