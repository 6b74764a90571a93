"""Runs calibration text through a model layer by layer: what a layer is fed may be looked at, and changed, on the way.

Only the hidden states between two layers are kept, `(B, T, hidden_size)` for each batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import LayerStack, find_layers

Batch = tuple[Tensor, Tensor]
"""`input_ids` and `attention_mask`, both int64 (B, T)."""


@dataclass(frozen=True)
class LayerCall:
    """How a layer is called, but for its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class LayerRun:
    """The hidden states before the layer that comes next, and how every layer is called."""

    stack: LayerStack
    """The layers."""
    hidden: list[Tensor]
    """`(B, T, hidden_size)` a batch."""
    masks: list[Tensor]
    """Bool `(B, T)` a batch, False where padding."""
    calls: list[list[LayerCall]] = field(repr=False)
    """A layer's calls, one a batch."""

    def forward(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """Yields the number of each batch and the output of layer `index` for it."""
        layer = self.stack.layers[index]
        for batch, (hidden, call) in enumerate(zip(self.hidden, self.calls[index], strict=True)):
            with torch.no_grad():
                yield batch, first_output(layer(hidden, *call.args, **call.kwargs))

    def advance(self, index: int) -> None:
        """Replaces the hidden states by the outputs of layer `index`."""
        for batch, output in self.forward(index):
            self.hidden[batch] = output


def start_run(model: PreTrainedModel, batches: Iterable[Batch]) -> LayerRun:
    """Returns the hidden states before the first layer, and how each layer is called, from one run of `model`.

    Layers may be called differently (a sliding window, no rotary embedding); what they are told besides the hidden
    states does not depend on these, so it is recorded once.

    Raises:
        UsageError: the batches hold no token.
        UnsupportedError: the layers cannot be found, share their weights, or are not fed hidden states first.
    """
    stack = find_layers(model)
    if stack.shared:
        raise UnsupportedError(
            f"model type '{model.config.model_type}': applies one layer {stack.applications} times, and calibration "
            "text is run layer by layer. Leave refit out, or choose an algorithm that needs no text."
        )
    run = LayerRun(stack, [], [], [[] for _ in stack.layers])

    def record(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, call = _split_call(args, kwargs)
        if index == 0:
            run.hidden.append(hidden)
        run.calls[index].append(call)

    def hook(index: int) -> Any:
        return lambda module, args, kwargs: record(index, args, kwargs)

    handles = [layer.register_forward_pre_hook(hook(i), with_kwargs=True) for i, layer in enumerate(stack.layers)]
    try:
        with torch.no_grad(), _without_cache(model):
            for input_ids, attention_mask in batches:
                run.masks.append(attention_mask.bool())
                # The layers run to their end: what a later layer is told may be made on the way.
                model.base_model(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        for handle in handles:
            handle.remove()
    if not sum(int(mask.sum()) for mask in run.masks):
        raise UsageError("calibration: found no token, expected text to measure on.")
    return run


def _split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
    """Returns the hidden states of a layer's call and the rest of it, without a cache of keys and values."""
    kwargs = {name: value for name, value in kwargs.items() if not name.startswith("past_key_value")}
    hidden = args[0] if args else kwargs.pop("hidden_states", None)
    if not isinstance(hidden, Tensor):
        raise UnsupportedError(
            "calibration: found layers that are not given hidden states first, expected those of transformers' models. "
            "Leave refit out, or choose an algorithm that needs no text."
        )
    return hidden, LayerCall(args[1:], kwargs)


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    had = getattr(model.config, "use_cache", None)
    try:
        if had is not None:
            model.config.use_cache = False
        yield
    finally:
        if had is not None:
            model.config.use_cache = had


def first_output(output: Any) -> Tensor:
    """Returns the hidden states of a layer's output."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
