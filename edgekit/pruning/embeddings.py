"""Cuts a model's token table, and what depends on it, to the tokens that a smaller tokenizer keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from transformers import PreTrainedModel

from edgekit.errors import ModelError
from edgekit.models.structure import PositionTable, find_embeddings, size_names
from edgekit.pruning.rebuild import copy_config, rebuild

_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Settings of a generation that name tokens too."""


def token_ids_of(config: Any) -> Iterator[tuple[str, int]]:
    """Yields the settings of a configuration that name tokens (`pad_token_id` ...), one id at a time."""
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") or name in _TOKEN_LISTS:
            for token_id in _flat(value):
                yield name, token_id


def token_ids_named_by(model: PreTrainedModel) -> set[int]:
    """Returns every id that the configurations of a model and of its generation name."""
    configs = [model.config, *([model.generation_config] if model.can_generate() else [])]
    return {token_id for config in configs for _, token_id in token_ids_of(config)}


def cut_embeddings(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Returns a model whose token `i` is the old token `kept[i]`: its rows of every table are equal to the bit.

    Ids in the configuration follow; those of tokens that are not kept become None. An output table follows the
    token table, and a tied one stays tied. Where positions are counted from the padding id, their table moves along.

    Raises:
        ModelError: the model has fewer rows than the tokenizer has tokens, or its padding token is not kept.
        UnsupportedError: the architecture's tables cannot be told apart.
    """
    embeddings = find_embeddings(model)
    rows = embeddings.word.rows
    if max(kept) >= rows:
        raise ModelError(
            f"the tokenizer has the id {max(kept)}, the model only {rows} rows in '{embeddings.word.name}'. "
            "Expected a row for every token: is it the model's own tokenizer?"
        )
    new_ids = {old: new for new, old in enumerate(kept)}
    config = copy_config(model)
    pad, shift = config.pad_token_id, 0
    if pad is not None and pad not in new_ids:
        raise ModelError(f"pad_token_id: found {pad}, which is no token of the tokenizer. Set it to its padding token.")
    if pad is not None and _counts_from_padding(embeddings.position, pad):
        shift = pad - new_ids[pad]
        config.max_position_embeddings -= shift
    _renumber(config, new_ids)
    setattr(config, size_names(config).vocabulary_size, len(kept))
    index = torch.tensor(kept)
    position_name = None if embeddings.position is None else f"{embeddings.position.name}.weight"

    def adapt(name: str, value: Tensor, shape: Size) -> Tensor:
        if name == position_name:
            return value[shift:]
        for dimension, (old, new) in enumerate(zip(value.shape, shape, strict=False)):
            if old == rows and new == len(kept):
                value = value.index_select(dimension, index)
        return value

    smaller = rebuild(model, config, adapt=adapt)
    if smaller.can_generate():
        _renumber(smaller.generation_config, new_ids)
    return smaller


def _counts_from_padding(position: PositionTable | None, pad: int) -> bool:
    return position is not None and getattr(position.module, "padding_idx", None) == pad


def _renumber(config: Any, new_ids: Mapping[int, int]) -> None:
    for name in {name for name, _ in token_ids_of(config)}:
        value = getattr(config, name)
        setattr(config, name, _renumbered(value, new_ids) if isinstance(value, list) else new_ids.get(value))


def _renumbered(value: list[Any], new_ids: Mapping[int, int]) -> list[Any]:
    """Returns a list of ids, or of sequences of ids, with new ones; what holds a dropped id goes."""
    renumbered: list[Any] = []
    for entry in value:
        if isinstance(entry, list):
            if all(token_id in new_ids for token_id in entry):
                renumbered.append([new_ids[token_id] for token_id in entry])
        elif entry in new_ids:
            renumbered.append(new_ids[entry])
    return renumbered


def _flat(value: Any) -> Iterator[int]:
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, list):
            yield from _flat(entry)
        elif isinstance(entry, int):
            yield entry
