"""Makes a smaller model of the same class from a changed configuration and the weights of the larger one.

Building anew, instead of operating on the old modules, makes the result what its saved configuration says: layer
indices, buffers, padding ids and ties come from the library's own constructor. Which weights go where is the
caller's matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from edgekit.errors import UnsupportedError
from edgekit.models.quiet import quiet_transformers

Rename = Callable[[str], str]
"""Takes a weight's name in the smaller model and returns the name in the larger one of what fills it."""

Adapt = Callable[[str, Tensor, torch.Size], Tensor]
"""Takes a weight's name in the smaller model, the larger one's value and the shape wanted; returns the value."""


def keep_name(name: str) -> str:
    """Returns the name as it is."""
    return name


def keep_value(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Returns the value as it is."""
    return value


def rebuild(
    model: PreTrainedModel, config: PretrainedConfig, *, rename: Rename = keep_name, adapt: Adapt = keep_value
) -> PreTrainedModel:
    """Returns a new model of the class of `model` that follows `config` and has its weights.

    Ensures: training mode, dtype and generation settings are those of `model`; torch's generator is left as it was.

    Raises:
        UnsupportedError: transformers cannot build it, or a weight is missing or of another shape than it makes.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        try:
            new = type(model)(config)
        except (ValueError, TypeError, IndexError, KeyError, AssertionError) as error:
            raise UnsupportedError(
                f"model type '{config.model_type}': transformers cannot build it with this part cut away ({error})."
            ) from error
    old = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, empty in new.state_dict().items():
        source = rename(name)
        if source not in old:
            raise UnsupportedError(
                f"model type '{config.model_type}': the smaller model has a weight '{name}', and the larger one has "
                f"no '{source}' to fill it. Keep this part."
            )
        value = adapt(name, old[source], empty.shape)
        if value.shape != empty.shape:
            raise UnsupportedError(
                f"model type '{config.model_type}': weight '{name}' would have the shape {tuple(value.shape)}, its "
                f"configuration makes {tuple(empty.shape)}. This part cannot be cut away from it."
            )
        state[name] = value
    new.load_state_dict(state)
    new.tie_weights()
    new.to(dtype=model.dtype)  # type: ignore[call-arg]  # the library's wrapper hides the signature
    new.train(model.training)
    if model.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    return new


def copy_config(model: PreTrainedModel) -> PretrainedConfig:
    """Returns a copy of the model's configuration that may be changed."""
    return copy.deepcopy(model.config)
