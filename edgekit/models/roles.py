"""Tells what a linear does inside its model, from names and shapes alone.

Where layers, embeddings and heads are is `structure.py`'s matter.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

Role = Literal[
    "query",
    "key",
    "value",
    "query_key_value",
    "attention_output",
    "attention_other",
    "feed_forward_gate",
    "feed_forward_up",
    "feed_forward_down",
    "feed_forward_other",
    "embedding_projection",
    "head",
]
"""What a linear does. `query_key_value` holds all three; `attention_other` is, for example, a projection of positions;
`feed_forward_up` may hold the gate as well; `head` is everything after the layers."""


def attention_role(name: str) -> Role:
    """Returns the role of a linear inside an attention, told by the last part of its name."""
    leaf = name.rsplit(".", 1)[-1].lower()
    words = set(re.split(r"_|(?<=w)(?=qkv|[qkvo]$)", leaf))
    if words & {"pos", "rel", "relative", "r"}:
        return "attention_other"
    if words & {"qkv"} or {"query", "key", "value"} <= words or {"c", "attn"} <= words or {"in", "proj"} <= words:
        return "query_key_value"
    roles: tuple[tuple[Role, set[str]], ...] = (
        ("query", {"q", "query"}),
        ("key", {"k", "key"}),
        ("value", {"v", "value"}),
        ("attention_output", {"o", "out", "output", "dense", "proj"}),
    )
    return next((role for role, signs in roles if words & signs), "attention_other")


def feed_forward_role(name: str, module: nn.Module, *, last: bool) -> Role:
    """Tells by shape: what widens goes up, what narrows goes down; of equals, the last one goes down."""
    inputs, outputs = features(module)
    leaf = name.rsplit(".", 1)[-1].lower()
    if leaf in ("gate", "router"):
        return "feed_forward_other"
    if outputs < inputs or (outputs == inputs and last):
        return "feed_forward_down"
    return "feed_forward_gate" if "gate" in leaf and "up" not in leaf else "feed_forward_up"


def features(module: nn.Module) -> tuple[int, int]:
    """Returns how many values a linear takes and gives."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return int(module.nx), int(module.nf)  # type: ignore[arg-type]


def is_linear(module: nn.Module) -> bool:
    """True for `nn.Linear`, quantized linears and transformers' `Conv1D` (a linear with its weight transposed)."""
    return hasattr(module, "in_features") or type(module).__name__ == "Conv1D"


def is_attention(module: nn.Module) -> bool:
    """True for an attention, told by the name of its class: all of transformers' say so."""
    return "attention" in type(module).__name__.lower()


def holds_attention(layer: nn.Module) -> bool:
    """True for a layer with attention inside; False for a bare attention, which is but a part of a layer."""
    return not is_attention(layer) and any(is_attention(part) for part in layer.modules())


def inside_attention(layer: nn.Module, name: str) -> bool:
    """True when the module called `name` in `layer` is part of an attention."""
    parts = name.split(".")
    return any(is_attention(layer.get_submodule(".".join(parts[:end]))) for end in range(1, len(parts)))
