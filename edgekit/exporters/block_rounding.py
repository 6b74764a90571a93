"""What llama.cpp, OpenVINO, LiteRT and ExecuTorch do with a linear's input: they round it to 8 bits in their own ways.

llama.cpp rounds in blocks of 32 whatever the codes' scheme says, OpenVINO where the file asks for it and the processor
has the instructions; LiteRT and ExecuTorch round each row. A block is a scale, the largest of 32 values over 127, and
32 codes (llama.cpp's `block_q8_0`); torch does the same here, but for the order of sums. How far that moves logits is
the measure for such a file of the same codes: see `language_limits.py` and `check_stage.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from edgekit.exporters.block_types import BLOCK
from edgekit.models.activation_rounding import round_blocks, round_rows
from edgekit.models.quantized import QuantizedLinear


def multiply_floats(network: nn.Module, names: Collection[str] | None = None) -> list[QuantizedLinear]:
    """Makes linears on codes take their input as it is, in place, and returns those that rounded it before.

    `names` are those meant, None all.
    """
    linears = [
        module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLinear) and (names is None or name in names)
    ]
    rounded = [linear for linear in linears if linear.scheme.activations == "dynamic-int8"]
    for module in linears:
        module.scheme = replace(module.scheme, activations="float", reduce_range=False)
        module.train(module.training)  # forgets what it has decoded to multiply integers
    return rounded


@contextmanager
def rounding_in_blocks(network: nn.Module) -> Iterator[None]:
    """Rounds the input of every linear on codes inside the `with` block, as llama.cpp and OpenVINO do."""
    linears = [module for module in network.modules() if isinstance(module, QuantizedLinear)]
    with _rounding(linears, lambda inputs: round_blocks(inputs, BLOCK)):
        yield


@contextmanager
def rounding_in_rows(linears: Sequence[QuantizedLinear]) -> Iterator[None]:
    """Rounds the input of each linear inside the `with` block, as XNNPACK does under LiteRT and ExecuTorch."""
    with _rounding(linears, round_rows):
        yield


@contextmanager
def _rounding(linears: Sequence[QuantizedLinear], rounded: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def round_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounded(inputs[0].float()).to(inputs[0].dtype), *inputs[1:])

    hooks = [linear.register_forward_pre_hook(round_inputs) for linear in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
