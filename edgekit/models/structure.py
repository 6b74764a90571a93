"""Finds the parts of any transformers model: its layers, embeddings, linears by role, and head.

It looks at module types, names and shapes, never at a table of architectures. It changes nothing, and does not know
what the parts are found for (pruning, quantization, export).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from edgekit.errors import UnsupportedError
from edgekit.models.roles import Role, attention_role, feed_forward_role, holds_attention, inside_attention, is_linear


@dataclass(frozen=True)
class Sizes:
    """The numbers that every configuration has, whatever it calls them."""

    layers: int
    hidden_size: int
    attention_heads: int
    vocabulary_size: int


@dataclass(frozen=True)
class SizeNames:
    """What a configuration calls its sizes: attributes that may be read and set."""

    layers: str
    hidden_size: str
    attention_heads: str
    vocabulary_size: str


@dataclass(frozen=True)
class LayerStack:
    """The transformer layers, in the order in which they run."""

    name: str
    """Name of the `nn.ModuleList` that holds them."""
    layers: tuple[nn.Module, ...]
    """The layers that own weights."""
    applications: int
    """How many times a layer is applied: more than `len(layers)` where layers share weights (ALBERT)."""

    @property
    def shared(self) -> bool:
        """True when one layer's weights are applied more than once."""
        return self.applications != len(self.layers)

    def name_of(self, index: int) -> str:
        """Returns the name of the module of layer `index`."""
        return f"{self.name}.{index}"


@dataclass(frozen=True)
class EmbeddingTable:
    """A lookup table."""

    name: str
    """Name of the module."""
    module: nn.Module
    """An `nn.Embedding`, or a quantized one."""
    rows: int
    """Entries in the table."""


@dataclass(frozen=True)
class PositionTable(EmbeddingTable):
    """A learned table of absolute positions."""

    offset: int
    """Row of the first position: above 0 where positions are counted from the padding id on (RoBERTa)."""

    @property
    def positions(self) -> int:
        """Tokens that a text may have."""
        return self.rows - self.offset


@dataclass(frozen=True)
class Embeddings:
    """Everything that a model looks up."""

    word: EmbeddingTable
    """Token ids to vectors."""
    position: PositionTable | None
    """Absolute positions to vectors; None where positions are relative or rotary."""
    others: tuple[EmbeddingTable, ...]
    """Token types, relative positions and the like."""


@dataclass(frozen=True)
class Linear:
    """A linear with the part that it plays."""

    name: str
    """Name of the module."""
    module: nn.Module
    """An `nn.Linear`, transformers' `Conv1D`, or a quantized linear."""
    role: Role
    """What it does."""
    layer: int | None
    """Index of its layer; None outside the layers."""


@dataclass(frozen=True)
class Structure:
    """All parts of a model."""

    sizes: Sizes
    stack: LayerStack
    embeddings: Embeddings
    linears: tuple[Linear, ...]
    """Every linear once, in the order of `named_modules`."""

    def of_role(self, *roles: Role, layer: int | None = None) -> tuple[Linear, ...]:
        """Returns the linears that play one of `roles`, of one layer or of all."""
        return tuple(
            linear for linear in self.linears if linear.role in roles and (layer is None or linear.layer == layer)
        )


def find_structure(model: PreTrainedModel) -> Structure:
    """Returns the parts of `model`.

    Raises:
        UnsupportedError: a part cannot be found; names it and what was found instead.
    """
    return Structure(read_sizes(model.config), find_layers(model), find_embeddings(model), find_linears(model))


def read_sizes(config: PretrainedConfig) -> Sizes:
    """Returns the sizes that `config` states.

    Raises:
        UnsupportedError: a size is missing.
    """
    names = size_names(config)
    return Sizes(
        layers=_read_size(config, names.layers),
        hidden_size=_read_size(config, names.hidden_size),
        attention_heads=_read_size(config, names.attention_heads),
        vocabulary_size=_read_size(config, names.vocabulary_size),
    )


def size_names(config: PretrainedConfig) -> SizeNames:
    """Returns what `config` calls its sizes, from optimum's table, or transformers' usual names."""
    from optimum.utils.normalized_config import NormalizedConfigManager, NormalizedTextConfig

    try:
        normalized: Any = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:
        normalized = NormalizedTextConfig(config)
    usual = NormalizedTextConfig
    return SizeNames(
        layers=getattr(normalized, "NUM_LAYERS", usual.NUM_LAYERS),
        hidden_size=getattr(normalized, "HIDDEN_SIZE", usual.HIDDEN_SIZE),
        attention_heads=getattr(normalized, "NUM_ATTENTION_HEADS", usual.NUM_ATTENTION_HEADS),
        vocabulary_size=getattr(normalized, "VOCAB_SIZE", usual.VOCAB_SIZE),
    )


def find_layers(model: PreTrainedModel) -> LayerStack:
    """Returns the one list of equal-typed modules that is as long as the configuration says.

    Raises:
        UnsupportedError: no such list, or several.
    """
    count = _read_size(model.config, size_names(model.config).layers)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = _outermost([(name, module) for name, module in lists if len(module) == count and _alike(module)])
    if len(found) > 1:  # a list of something else, as long by chance
        found = [(name, module) for name, module in found if holds_attention(module[0])]
    if len(found) == 1:
        return LayerStack(found[0][0], tuple(found[0][1]), count)
    shared = _innermost_shared(lists) if getattr(model.config, "num_hidden_groups", None) else None
    if not found and shared is not None:
        return LayerStack(shared[0], tuple(shared[1]), count)
    described = ", ".join(f"{name} ({len(module)})" for name, module in found or lists) or "none"
    raise UnsupportedError(
        f"model type '{model.config.model_type}': found these lists of modules: {described}; expected exactly one of "
        f"{count} layers of one type. Models whose layers are of several kinds or kept elsewhere are not supported."
    )


def find_embeddings(model: PreTrainedModel) -> Embeddings:
    """Returns the tables that `model` looks tokens, positions and the rest up in.

    Raises:
        UnsupportedError: there is no table of tokens.
    """
    word: EmbeddingTable | None = None
    position: PositionTable | None = None
    others: list[EmbeddingTable] = []
    word_module = model.get_input_embeddings()
    for name, module in model.named_modules():
        if not hasattr(module, "num_embeddings"):
            continue
        rows = int(module.weight.shape[0])
        if module is word_module:
            word = EmbeddingTable(name, module, rows)
        elif position is None and _is_position(name):
            position = PositionTable(name, module, rows, _position_offset(module))
        else:
            others.append(EmbeddingTable(name, module, rows))
    if word is None:
        raise UnsupportedError(
            f"model type '{model.config.model_type}': found {type(word_module).__name__} as input embeddings, expected "
            "a table with one row a token."
        )
    return Embeddings(word, position, tuple(others))


def find_linears(model: PreTrainedModel) -> tuple[Linear, ...]:
    """Returns every linear of `model` with its role.

    Raises:
        UnsupportedError: the layers cannot be found.
    """
    stack = find_layers(model)
    linears: list[Linear] = []
    for index in range(len(stack.layers)):
        linears.extend(layer_linears(stack, index))
    inside = {linear.name: linear for linear in linears}
    body = f"{model.base_model_prefix}." if model.base_model is not model else ""
    result: list[Linear] = []
    before = True
    for name, module in model.named_modules():
        before = before and name != stack.name
        if name in inside:
            result.append(inside[name])
        elif is_linear(module):
            role: Role = "embedding_projection" if before and name.startswith(body) else "head"
            result.append(Linear(name, module, role, None))
    return tuple(result)


def layer_linears(stack: LayerStack, index: int) -> Iterator[Linear]:
    """Yields the linears of layer `index`, with their roles."""
    layer = stack.layers[index]
    feed_forward: list[tuple[str, nn.Module]] = []
    for name, module in layer.named_modules():
        if is_linear(module):
            full_name = f"{stack.name_of(index)}.{name}"
            if inside_attention(layer, name):
                yield Linear(full_name, module, attention_role(name), index)
            else:
                feed_forward.append((full_name, module))
    for place, (full_name, module) in enumerate(feed_forward):
        last = place == len(feed_forward) - 1
        yield Linear(full_name, module, feed_forward_role(full_name, module, last=last), index)


def _read_size(config: PretrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise UnsupportedError(
            f"model type '{config.model_type}': found {value!r} as '{name}' in its configuration, expected a whole "
            "number. Models that lack it, or have several, are not supported."
        )
    return value


def _is_position(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1].lower()
    return ("position" in leaf or leaf == "wpe") and "rel" not in leaf


def _position_offset(module: nn.Module) -> int:
    """Reads how many rows come before the first position."""
    padding = getattr(module, "padding_idx", None)
    return int(getattr(module, "offset", 0) if padding is None else padding + 1)


def _alike(modules: nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1


def _outermost(lists: list[tuple[str, nn.ModuleList]]) -> list[tuple[str, nn.ModuleList]]:
    names = [name for name, _ in lists]
    return [(name, module) for name, module in lists if not any(name.startswith(f"{outer}.") for outer in names)]


def _innermost_shared(lists: list[tuple[str, nn.ModuleList]]) -> tuple[str, nn.ModuleList] | None:
    """Returns the one list that holds no other list: the layers that are applied again and again."""
    names = [name for name, _ in lists]
    inner = [(name, module) for name, module in lists if not any(other.startswith(f"{name}.") for other in names)]
    return inner[0] if len(inner) == 1 else None
