"""Finds the encoder layers of a transformers model and, in a layer, what makes queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Last part of a module's name, across the encoders of transformers; `fused` holds the three side by side.
_NAMES: dict[str, tuple[str, ...]] = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v"),
    "fused": ("Wqkv", "qkv_proj", "qkv"),
}
PARTS = ("query", "key", "value")


def encoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the layers of `model`, lowest first.

    Raises:
        UnsupportedError: no list of as many modules as the configuration counts layers, or several.
    """
    count = model.config.num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    stacks = [stack for stack in lists if _has_projections(stack[0])]
    if len(stacks) != 1:
        raise UnsupportedError(
            f"{type(model).__name__}: found {len(stacks)} lists of {count} attention layers, expected 1. "
            "Set attention_relation_weight to 0 for this architecture."
        )
    return list(stacks[0])


@contextmanager
def watched_projections(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that a forward pass of `layer` fills with `query`, `key` and `value`, each (B, T, H).

    Raises:
        UnsupportedError: the layer's projections are not named as those of any known encoder.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for part, module in _projections(layer).items():

        def keep(module: nn.Module, inputs: object, output: Tensor, part: str = part) -> None:
            found.update(zip(PARTS, output.chunk(3, dim=-1), strict=True) if part == "fused" else {part: output})

        handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _has_projections(layer: nn.Module) -> bool:
    try:
        _projections(layer)
    except UnsupportedError:
        return False
    return True


def _projections(layer: nn.Module) -> dict[str, nn.Module]:
    """Returns `query`, `key` and `value` to their modules, or `fused` to the one that makes all three."""
    linears = {name.rpartition(".")[2]: module for name, module in layer.named_modules() if _is_linear(module)}
    found = {part: linears[name] for part, names in _NAMES.items() for name in names if name in linears}
    if all(part in found for part in PARTS):
        return {part: found[part] for part in PARTS}
    if "fused" in found:
        return {"fused": found["fused"]}
    raise UnsupportedError(
        f"{type(layer).__name__}: found the linears {', '.join(sorted(linears)) or 'none'}, expected query, key and "
        "value projections. Set attention_relation_weight to 0 for this architecture."
    )


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
