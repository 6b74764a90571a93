"""Watches what an attention layer makes of its input: queries, keys and values, before they are cut into heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.models.roles import Role
from edgekit.models.structure import find_layers, find_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS: tuple[Role, ...] = ("query", "key", "value")

# Fused linears that put all queries before all keys before all values; others interleave them head by head.
_SIDE_BY_SIDE = ("wqkv", "qkv", "qkv_proj", "in_proj", "c_attn")


def find_projections(model: PreTrainedModel, layer: int) -> dict[str, nn.Module]:
    """Returns `query`, `key` and `value` to the linears of layer `layer`, or `fused` to the one that makes all three.

    Raises:
        UnsupportedError: the layer has no such linears, or several, or shares its weights with other layers.
    """
    kind = model.config.model_type
    advice = "Set attention_relation_weight to 0 for this architecture."
    if find_layers(model).shared:
        raise UnsupportedError(f"model type '{kind}': its layers share weights, expected layers of their own. {advice}")
    linears = [linear for linear in find_linears(model) if linear.layer == layer]
    found = {part: [linear.module for linear in linears if linear.role == part] for part in PARTS}
    if all(len(modules) == 1 for modules in found.values()):
        return {part: modules[0] for part, modules in found.items()}
    fused = [linear for linear in linears if linear.role == "query_key_value"]
    if len(fused) == 1 and fused[0].name.rpartition(".")[2].lower() in _SIDE_BY_SIDE:
        return {"fused": fused[0].module}
    names = ", ".join(linear.name for linear in linears) or "none"
    raise UnsupportedError(
        f"model type '{kind}': found the linears {names} in layer {layer}, expected one projection of queries, one of "
        f"keys and one of values, or one of all three side by side. {advice}"
    )


@contextmanager
def watched(projections: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that a forward pass fills with `query`, `key` and `value`, each (B, T, H)."""
    found: dict[str, Tensor] = {}
    handles = []
    for part, module in projections.items():

        def keep(module: nn.Module, inputs: object, output: Tensor, part: str = part) -> None:
            parts = dict(zip(PARTS, output.chunk(3, dim=-1), strict=True)) if part == "fused" else {part: output}
            for name, value in parts.items():
                found.setdefault(name, value)  # DeBERTa projects its relative positions afterwards

        handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
