"""A transformers cache that keeps nothing: new keys and values pass, and the attention that they go to is told.

GroupQueryAttention joins past and present itself, so the model must not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _PassingLayer(DynamicLayer):
    """Hands new keys and values on; `length` is what the model is told of the past."""

    def __init__(self, length: Any = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Returns both as they are."""
        return key_states, value_states

    def get_seq_length(self) -> Any:
        """Returns the length of the past, a number or a symbol."""
        return self.length


class PassingCache(Cache):
    """The cache that is passed to a model whose attention reads past keys and values elsewhere."""

    def __init__(self, past_length: Any = 0, layers: int | None = None) -> None:
        """`past_length` may be a symbol of a trace."""
        super().__init__(layers=[_PassingLayer(past_length) for _ in range(layers or 0)])
        self._past_length = past_length
        self._pending: tuple[int, Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns both as they are and remembers which layer they are of."""
        while len(self.layers) <= layer_idx:
            self.layers.append(_PassingLayer(self._past_length))
        self._pending = (layer_idx, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Returns the length of the past."""
        return self._past_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[Any, int]:
        """Returns the length of past and present, and no offset."""
        return self._past_length + query_length, 0

    def take(self, key: Tensor, value: Tensor) -> int | None:
        """Returns the layer that the last update was of, when `key` and `value` are just what it passed; else None."""
        pending, self._pending = self._pending, None
        if pending is None or pending[1] is not key or pending[2] is not value:
            return None
        return pending[0]
