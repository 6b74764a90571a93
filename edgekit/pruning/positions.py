"""Drops the positions of a learned position table that no text reaches."""

from __future__ import annotations

from torch import Size, Tensor
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import PositionTable, find_embeddings
from edgekit.pruning.rebuild import copy_config, rebuild


def cut_positions(model: PreTrainedModel, positions: int) -> PreTrainedModel:
    """Returns a model that takes texts of at most `positions` tokens and computes the same for them, to the bit.

    Rows before the first position (RoBERTa counts from the padding id on) are kept.

    Raises:
        UsageError: `positions` is not between 1 and what the model has.
        UnsupportedError: the model has no learned table of absolute positions.
    """
    table = require_positions(model)
    if not 1 <= positions <= table.positions:
        raise UsageError(
            f"max_positions: found {positions}, expected 1 to {table.positions}, the positions that the model has."
        )
    config = copy_config(model)
    config.max_position_embeddings -= table.positions - positions

    def adapt(name: str, value: Tensor, shape: Size) -> Tensor:
        return value[: table.offset + positions] if name == f"{table.name}.weight" else value

    return rebuild(model, config, adapt=adapt)


def require_positions(model: PreTrainedModel) -> PositionTable:
    """Returns the model's learned table of absolute positions.

    Raises:
        UnsupportedError: it has none.
    """
    table = find_embeddings(model).position
    if table is None:
        raise UnsupportedError(
            f"max_positions: model type '{model.config.model_type}' has no learned table of absolute positions "
            "(its positions are relative or rotary), so nothing would get smaller. Leave max_positions out."
        )
    return table
