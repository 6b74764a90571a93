"""How much a model that rounds its activations answers to nothing: torch against itself, slightly disturbed.

Rounding to 8 bits is a step: a value on the edge between two codes falls to either side by float noise, the step is
carried into the next layer, and the logits of an unlucky text move by tenths. That is the model's own nature, not a
fault of an export, and no export can be nearer to torch than torch is to itself. So an export is held to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DISTURBANCE = 1e-6
"""Relative size of the noise on the embeddings: what another order of float32 sums makes of a layer's output."""


@contextmanager
def disturbed(network: PreTrainedModel, *, seed: int) -> Iterator[None]:
    """Multiplies the embeddings, (B, T, H), by 1 + `DISTURBANCE` * N(0, 1) inside the `with` block."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(module: torch.nn.Module, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        return outputs * (1 + DISTURBANCE * noise)

    handle = network.get_input_embeddings().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()
