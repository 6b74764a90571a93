"""Which process of a launched run this is: `torchrun`, `accelerate launch` and `mpirun` tell by environment variables.

It asks neither torch nor accelerate, so that it costs nothing before a stage needs them.
"""

from __future__ import annotations

import os

# the names that accelerate reads, in its order
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def process_number() -> int:
    """Returns the number of this process among those of the run, from 0; 0 where nothing launched it."""
    return _first_number(_RANKS, 0)


def process_count() -> int:
    """Returns the processes of the run, at least 1."""
    return max(1, _first_number(_COUNTS, 1))


def is_main_process() -> bool:
    """Returns whether this is the one process that tells of progress and results."""
    return process_number() == 0


def _first_number(names: tuple[str, ...], otherwise: int) -> int:
    found = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in found if text.isdigit()), otherwise)
