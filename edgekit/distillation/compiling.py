"""Lets torch.compile make a few kernels of each layer of a model while it is trained, or teaches.

It knows models and their layers; what the losses make of the last one's output is compiled by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from edgekit.errors import EnvironmentLacksError
from edgekit.models.structure import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_compiler(device: torch.device) -> None:
    """Compiles something small for `device`, to find out before the work begins whether that is possible here.

    Raises:
        EnvironmentLacksError: it is not.
    """
    try:
        torch.compile(lambda numbers: numbers * 2 + 1, options={"fx_graph_cache": False})(torch.zeros(8, device=device))
    except Exception as error:  # whatever a compiler, or its absence, may raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EnvironmentLacksError(
            f"language.compile: torch.compile does not work here for the device '{device}' ({reason.strip()[:200]}). "
            "Install a C++ compiler (Debian: apt-get install g++), or leave language.compile off."
        ) from error


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Compiles the layers of `model` while the block runs: alike as they are, one compilation serves all of them.

    The first pass of each kind (with and without gradients, of another shape) takes longer, by seconds to a minute.

    Raises:
        UnsupportedError: the layers were not found.
    """
    layers = find_layers(model).layers
    try:
        for layer in layers:
            layer.compile()
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
