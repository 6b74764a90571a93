"""Recognizes a model's rotary embedding by what it computes, and tabulates it from the model's own module.

    half        first = x[..., : R / 2], second = x[..., R / 2 : R]
    interleaved first = x[..., 0 : R : 2], second = x[..., 1 : R : 2]
    rotated     first * cos - second * sin, second * cos + first * sin; x[..., R:] passes

Su et al., RoFormer, 2021 (arXiv 2104.09864), equation 34. Scaling of any kind (linear, llama3, yarn, longrope) is in
the tables already. It knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# float32 products and sums in another order.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class RotarySource:
    """One way that a model calls a rotary module: Gemma 3 calls one module once for each type of layer."""

    module: nn.Module
    """Takes hidden states and positions (B, T), gives cos and sin (B, T, R)."""
    arguments: tuple[Any, ...]
    """What it is called with besides, such as the type of the layers."""

    def tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of positions 0 to `positions` - 1, each float32 (positions, R)."""
        with torch.no_grad():
            cos, sin = self.module(torch.zeros(1, 1), torch.arange(positions)[None], *self.arguments)
        return cos[0].float().contiguous(), sin[0].float().contiguous()


@dataclass(frozen=True)
class RotaryLayout:
    """How a model applies its tables."""

    interleaved: bool
    """Pairs are neighbours, not halves."""
    repeated: bool
    """The module repeats each angle twice in a row (`cos[..., ::2]` holds all), instead of all angles twice."""

    def narrow(self, table: Tensor) -> Tensor:
        """Returns the distinct angles of a table (..., R) as (..., R / 2)."""
        return (table[..., ::2] if self.repeated else table[..., : table.shape[-1] // 2]).contiguous()


def is_rotary(module: nn.Module) -> bool:
    """Returns whether `module` makes cos and sin of positions, told by its buffers of inverse frequencies."""
    return any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))


def rotate(states: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Returns (B, N, T, D) rotated by narrow tables (B, T, R / 2), as the runtime's operator defines it."""
    width = 2 * cos.shape[-1]
    turned, passed = states[..., :width], states[..., width:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    parts = (first * cos - second * sin, second * cos + first * sin)
    joined = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return torch.cat((joined, passed), dim=-1)


def find_layout(before: Sequence[Tensor], after: Sequence[Tensor], cos: Tensor, sin: Tensor) -> RotaryLayout | None:
    """Returns the layout that turns `before` (query and key, each (B, N, T, D)) into `after`; None when there is none.

    `cos` and `sin` are (B, T, R), as the model made them.
    """
    shapes_fit = all(state.ndim == 4 and state.shape[2] == cos.shape[1] for state in before)
    if not shapes_fit or cos.ndim != 3 or cos.shape[-1] % 2 or any(cos.shape[-1] > each.shape[-1] for each in before):
        return None
    for layout in (RotaryLayout(a, b) for a in (False, True) for b in (False, True)):
        angles = layout.narrow(cos), layout.narrow(sin)
        rotated = [rotate(state, *angles, interleaved=layout.interleaved) for state in before]
        if all(torch.allclose(mine, other, atol=_TOLERANCE) for mine, other in zip(rotated, after, strict=True)):
            return layout
    return None


def require_static(config: PretrainedConfig, context_length: int) -> None:
    """Refuses frequencies that change with the length of the text.

    Raises:
        UnsupportedError: dynamic scaling, or longrope beyond the length at which it changes its factors.
    """
    for name, parameters in _named_parameters(getattr(config, "rope_parameters", None) or {}):
        kind = parameters.get("rope_type", "default")
        if kind == "dynamic":
            raise UnsupportedError(
                f"onnx: found rope_type 'dynamic'{name}, whose frequencies change with the length of the text; "
                "expected ones that a table can hold. Set rope_type to 'default' or 'yarn' in the configuration."
            )
        original = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if kind == "longrope" and original and context_length > original:
            raise UnsupportedError(
                f"onnx: found rope_type 'longrope'{name} and a context of {context_length} tokens; its frequencies "
                f"change at {original}. Set the task's max_length to at most {original}."
            )


def _named_parameters(parameters: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the parameters with the name of their type of layer; most models have one nameless set."""
    nested = [(f" for '{key}'", value) for key, value in parameters.items() if isinstance(value, Mapping)]
    return nested or [("", parameters)]
