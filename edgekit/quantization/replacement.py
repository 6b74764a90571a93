"""Puts codes into a model: a quantized module where a float one was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from edgekit.errors import ModelError, UsageError
from edgekit.models.codes import QuantizedTensor
from edgekit.models.quantized import QuantizedLinear, QuantizedModule, empty_like, replace_module


def put_codes(model: nn.Module, name: str, weight: QuantizedTensor) -> QuantizedModule:
    """Replaces the linear or embedding called `name` by one on the codes of `weight`, in place, and returns it."""
    module = model.get_submodule(name)
    quantized = empty_like(module, weight.scheme, name)
    quantized.set_weight(weight)
    bias = getattr(module, "bias", None)
    if isinstance(quantized, QuantizedLinear) and isinstance(bias, Tensor):
        quantized.bias = bias.detach().clone()
    replace_module(model, module, quantized)
    return quantized


@contextmanager
def naming(names: Sequence[str]) -> Iterator[None]:
    """Puts the names of modules before the message of an error."""
    try:
        yield
    except (ModelError, UsageError) as error:
        described = ", ".join(f"'{name}'" for name in names)
        raise type(error)(f"module{'s' if len(names) > 1 else ''} {described}: {error}") from error
