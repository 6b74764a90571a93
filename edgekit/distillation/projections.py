"""Watches what an attention layer makes of its input: queries, keys and values, before they are cut into heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.models.roles import Role
from edgekit.models.structure import find_layers, layer_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS: tuple[Role, ...] = ("query", "key", "value")

_ADVICE = "Set attention_relation_weight to 0 for this architecture."
# Fused linears that put all queries before all keys before all values; others interleave them head by head.
_SIDE_BY_SIDE = ("wqkv", "qkv", "qkv_proj", "in_proj", "c_attn")


@dataclass(frozen=True)
class Projections:
    """What makes the queries, keys and values of one layer."""

    modules: dict[str, nn.Module]
    """`query`, `key` and `value` to their linears, or `fused` to the one that makes all three."""
    sizes: tuple[int, int, int]
    """Channels of queries, keys and values: the latter two are fewer where heads share them in groups."""


def find_projections(model: PreTrainedModel, layer: int) -> Projections:
    """Returns what makes the queries, keys and values of layer `layer`.

    Raises:
        UnsupportedError: the layer has no such linears, or several, or shares its weights with other layers.
    """
    kind = model.config.model_type
    stack = find_layers(model)
    if stack.shared:
        raise UnsupportedError(
            f"model type '{kind}': its layers share weights, expected layers of their own. {_ADVICE}"
        )
    linears = list(layer_linears(stack, layer))  # of this layer alone: every pass looks for them
    found = {part: [linear.module for linear in linears if linear.role == part] for part in PARTS}
    if all(len(modules) == 1 for modules in found.values()):
        sizes = [_outputs(found[part][0]) for part in PARTS]
        return Projections({part: modules[0] for part, modules in found.items()}, (sizes[0], sizes[1], sizes[2]))
    fused = [linear for linear in linears if linear.role == "query_key_value"]
    if len(fused) == 1 and fused[0].name.rpartition(".")[2].lower() in _SIDE_BY_SIDE:
        return Projections({"fused": fused[0].module}, _fused_sizes(model, _outputs(fused[0].module)))
    names = ", ".join(linear.name for linear in linears) or "none"
    raise UnsupportedError(
        f"model type '{kind}': found the linears {names} in layer {layer}, expected one projection of queries, one of "
        f"keys and one of values, or one of all three side by side. {_ADVICE}"
    )


@contextmanager
def watched(projections: Projections) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that a forward pass fills with `query`, `key` and `value`, each (B, T, its size)."""
    found: dict[str, Tensor] = {}
    handles = []
    for part, module in projections.modules.items():

        def keep(module: nn.Module, inputs: object, output: Tensor, part: str = part) -> None:
            fused = part == "fused"
            parts = dict(zip(PARTS, output.split(projections.sizes, dim=-1), strict=True)) if fused else {part: output}
            for name, value in parts.items():
                found.setdefault(name, value)  # DeBERTa projects its relative positions afterwards

        handles.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _fused_sizes(model: PreTrainedModel, outputs: int) -> tuple[int, int, int]:
    """Returns how many of a fused linear's outputs are queries, keys and values.

    Raises:
        UnsupportedError: the numbers of heads do not add up to its outputs.
    """
    config = model.config
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if (heads + 2 * groups) * head_size != outputs or hasattr(config, "multi_query"):
        raise UnsupportedError(
            f"model type '{config.model_type}': found one linear of {outputs} outputs for queries, keys and values, "
            f"expected {heads} + 2 x {groups} heads of {head_size}, side by side. {_ADVICE}"
        )
    return heads * head_size, groups * head_size, groups * head_size


def _outputs(linear: nn.Module) -> int:
    return int(linear.out_features if hasattr(linear, "out_features") else linear.nf)  # type: ignore[arg-type]
