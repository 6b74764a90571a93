"""Measures how much each layer changes its input on text.

Which layers are dropped for it is `layers.py`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from edgekit.errors import ModelError, UsageError
from edgekit.models.structure import find_layers
from edgekit.pruning.layers import layer_input


@dataclass(frozen=True)
class LayerImportance:
    """How much each layer turns its input, averaged over all tokens that are not padding."""

    block_influence: tuple[float, ...]
    """`1 - cos(input, output)`, 0 (changes nothing) to 2."""
    angular_distance: tuple[float, ...]
    """`arccos(cos(input, output)) / pi`, 0 (changes nothing) to 1."""
    tokens: int
    """Tokens averaged over."""


class Calibration:
    """A run over calibration text, for hooks that need to know which tokens are padding."""

    def __init__(self) -> None:
        """Starts before the first batch."""
        self.real = torch.empty(0, dtype=torch.bool)
        """(B, T) of the batch that runs, False where padding."""

    def run(
        self, model: PreTrainedModel, batches: Iterable[tuple[Tensor, Tensor]], handles: Sequence[RemovableHandle]
    ) -> int:
        """Runs every batch, removes the hooks, and returns how many tokens were no padding.

        Raises:
            UsageError: the batches hold no token.
        """
        tokens = 0
        body = model.base_model  # without the head: logits over a large vocabulary would take gigabytes
        try:
            with torch.inference_mode():
                for input_ids, attention_mask in batches:
                    self.real = attention_mask.bool()
                    tokens += int(self.real.sum())
                    body(input_ids=input_ids, attention_mask=attention_mask)
        finally:
            for handle in handles:
                handle.remove()
        if not tokens:
            raise UsageError("calibration: found no token, expected text to measure on.")
        return tokens


def measure_importance(model: PreTrainedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> LayerImportance:
    """Returns each layer's importance on calibration text, summed in float64.

    Block influence is equation 1 of ShortGPT (Men et al. 2024, https://arxiv.org/abs/2403.03853):
    `BI_i = 1 - E[X_i . X_(i+1) / (|X_i| |X_(i+1)|)]`, X_i (hidden_size) a token's input of layer i. The angular
    distance is that of Gromov et al. 2024 (https://arxiv.org/abs/2403.17887), for blocks of one layer and averaged
    over all tokens, where they take the last one: an encoder's last token says no more than the others.

    Args:
        model: in evaluation mode.
        batches: `input_ids` and `attention_mask`, both int64 (B, T).

    Raises:
        ModelError: an output is not a finite number.
        UsageError: the batches hold no token.
        UnsupportedError: the layers cannot be found.
    """
    stack = find_layers(model)
    cosines = torch.zeros(stack.applications, dtype=torch.float64)
    angles = torch.zeros(stack.applications, dtype=torch.float64)
    calls = 0
    calibration = Calibration()

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal calls
        index = calls % stack.applications
        calls += 1
        after = output[0] if isinstance(output, tuple) else output
        cosine = _cosine(layer_input(args, kwargs)[calibration.real], after[calibration.real])
        cosines[index] += cosine.sum()
        angles[index] += torch.arccos(cosine).sum()

    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in stack.layers]
    tokens = calibration.run(model, batches, handles)
    if not bool(torch.isfinite(cosines).all()):
        raise ModelError(
            "calibration: found layers whose outputs are not finite numbers, expected finite ones: nothing says which "
            "to keep. Check the weights."
        )
    return LayerImportance(
        block_influence=tuple((1 - cosines / tokens).tolist()),
        angular_distance=tuple((angles / (tokens * math.pi)).tolist()),
        tokens=tokens,
    )


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """Returns the cosine similarity of each row of two `(N, hidden_size)` tensors, `(N,)` float64."""
    before, after = before.double(), after.double()
    norms = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    cosine: Tensor = (before * after).sum(dim=-1) / norms.clamp(min=1e-300)
    return cosine.clamp(-1, 1)
