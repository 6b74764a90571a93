"""Gathers what the linears of a layer are fed by calibration text, the statistics of one layer at a time.

It knows nothing of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.models.layer_run import LayerRun


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
