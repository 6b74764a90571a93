"""Runs calibration text through a model layer by layer, and gathers what the linears of a layer are fed.

Only the hidden states between two layers are kept, `(B, T, hidden_size)` for each batch, and the statistics of one
layer at a time. It knows nothing of codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import LayerStack, find_layers

Batch = tuple[Tensor, Tensor]
"""`input_ids` and `attention_mask`, both int64 (B, T)."""


@dataclass
class InputStatistics:
    """What some linears of a layer are fed: one tensor, read by all of them."""

    names: list[str]
    """Names of the linears within the layer."""
    hessian: Tensor
    """X^T X over all tokens but padding, `(in, in)` float64."""
    magnitude: Tensor
    """Sum of the absolute inputs over those tokens, `(in,)` float64."""
    tokens: int = 0
    """Tokens summed over."""
    source: str | None = None
    """Name within the layer of the norm whose output it is; None where it is no norm's."""


@dataclass(frozen=True)
class _Call:
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
    calls: list[list[_Call]] = field(repr=False)
    """A layer's calls, one a batch."""

    def forward(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """Yields the number of each batch and the output of layer `index` for it."""
        layer = self.stack.layers[index]
        for batch, (hidden, call) in enumerate(zip(self.hidden, self.calls[index], strict=True)):
            with torch.no_grad():
                yield batch, _first(layer(hidden, *call.args, **call.kwargs))

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
            f"model type '{model.config.model_type}': applies one layer {stack.applications} times, and the text is "
            "measured layer by layer. Use algorithm = 'hqq' or 'round-to-nearest'."
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


def observe(run: LayerRun, index: int, names: Sequence[str]) -> list[InputStatistics]:
    """Returns what the linears called `names` in layer `index` are fed, one entry for each tensor that they read."""
    layer = run.stack.layers[index]
    observer = _Observer()
    handles = [layer.get_submodule(name).register_forward_pre_hook(observer.reader(name)) for name in names]
    norms = [(name, module) for name, module in layer.named_modules() if "norm" in type(module).__name__.lower()]
    handles += [module.register_forward_hook(observer.writer(name)) for name, module in norms]
    try:
        outputs = run.forward(index)
        for mask in run.masks:
            observer.begin(mask)
            next(outputs)
            observer.end()
    finally:
        for handle in handles:
            handle.remove()
    return observer.statistics


class _Observer:
    """Hooks that sum inputs up; linears that are given the same tensor share their sums."""

    def __init__(self) -> None:
        self.statistics: list[InputStatistics] = []
        self._mask = torch.empty(0)
        self._read: list[tuple[Tensor, list[str]]] = []
        self._written: list[tuple[Tensor, str]] = []

    def begin(self, mask: Tensor) -> None:
        """Starts a batch whose real tokens `mask` (B, T) tells."""
        self._mask = mask
        self._read, self._written = [], []

    def reader(self, name: str) -> Any:
        """Returns a hook that notes which tensor a linear reads; it is held, so that its identity stays its own."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            for tensor, names in self._read:
                if tensor is args[0]:
                    names.append(name)
                    return
            self._read.append((args[0], [name]))

        return hook

    def writer(self, name: str) -> Any:
        """Returns a hook that notes which tensor a norm writes."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._written.append((output, name))

        return hook

    def end(self) -> None:
        """Adds a batch to the sums."""
        for tensor, names in self._read:
            inputs = self._rows(tensor)
            entry = next((entry for entry in self.statistics if entry.names == names), None)
            if entry is None:
                width = inputs.shape[1]
                zeros = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
                entry = InputStatistics(names, *zeros)
                entry.source = next((name for output, name in self._written if output is tensor), None)
                self.statistics.append(entry)
            entry.hessian += inputs.T @ inputs
            entry.magnitude += inputs.abs().sum(dim=0)
            entry.tokens += len(inputs)

    def _rows(self, inputs: Tensor) -> Tensor:
        """Returns the inputs of real tokens, `(tokens, in)` float32."""
        if inputs.shape[:-1] == self._mask.shape:
            return inputs[self._mask].float()
        return inputs.reshape(-1, inputs.shape[-1]).float()


def _split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Call]:
    """Returns the hidden states of a layer's call and the rest of it, without a cache of keys and values."""
    kwargs = {name: value for name, value in kwargs.items() if not name.startswith("past_key_value")}
    hidden = args[0] if args else kwargs.pop("hidden_states", None)
    if not isinstance(hidden, Tensor):
        raise UnsupportedError(
            "calibration: found layers that are not given hidden states first, expected those of transformers' models. "
            "Use algorithm = 'hqq' or 'round-to-nearest'."
        )
    return hidden, _Call(args[1:], kwargs)


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


def _first(output: Any) -> Tensor:
    """Returns the hidden states of a layer's output."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
