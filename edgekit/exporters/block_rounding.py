"""What llama.cpp, OpenVINO and LiteRT do with a linear's input: they round it to 8 bits in their own ways.

llama.cpp rounds in blocks of 32 whatever the codes' scheme says, OpenVINO where the file asks for it and the processor
has the instructions; LiteRT rounds each row. A block is a scale, the largest of 32 values over 127, and 32 codes
(llama.cpp's `block_q8_0`); torch does the same here, but for the order of sums. How far that moves logits is the
measure for such a file of the same codes: see `language_limits.py` and `check_stage.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from edgekit.exporters.block_types import BLOCK
from edgekit.models.activation_rounding import round_blocks, round_rows
from edgekit.models.quantized import QuantizedLinear


def multiply_floats(network: nn.Module) -> None:
    """Makes every linear on codes take its input as it is, in place; before the network is run for the first time."""
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.scheme = replace(module.scheme, activations="float", reduce_range=False)


@contextmanager
def rounding_in_blocks(network: nn.Module) -> Iterator[None]:
    """Rounds the input of every linear on codes inside the `with` block, as llama.cpp and OpenVINO do."""
    with _rounding(network, lambda inputs: round_blocks(inputs, BLOCK)):
        yield


@contextmanager
def rounding_in_rows(network: nn.Module) -> Iterator[None]:
    """Rounds the input of every linear on codes inside the `with` block, as LiteRT's XNNPACK does."""
    with _rounding(network, round_rows):
        yield


@contextmanager
def _rounding(network: nn.Module, rounded: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def round_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounded(inputs[0].float()).to(inputs[0].dtype), *inputs[1:])

    linears = [module for module in network.modules() if isinstance(module, QuantizedLinear)]
    hooks = [linear.register_forward_pre_hook(round_inputs) for linear in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
