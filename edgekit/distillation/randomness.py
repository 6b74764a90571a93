"""Keeps a stage pure: every random number comes from the stage's seed, and the caller's generators are left alone.

The seed of each forward pass is derived from its place in the run. So a checkpoint needs no generator states: a
resumed run draws the same numbers as one that was never interrupted, however many processes share it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restores Python's, numpy's and torch's global generators after the `with` block."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


def derived_seed(seed: int, *place: int) -> int:
    """Returns a seed of 32 bits for one place in a run, for example (step, forward pass, process)."""
    return int(np.random.SeedSequence([seed % 2**64, *place]).generate_state(1)[0])


def generator(seed: int, *place: int) -> np.random.Generator:
    """Returns a generator of its own for one place in a run, for example an epoch's order of rows."""
    return np.random.default_rng(np.random.SeedSequence([seed % 2**64, *place]))
