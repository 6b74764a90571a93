"""Keeps some of a model's transformer layers and drops the rest.

A dropped layer's input goes on as its output, so the result computes what the larger model would with those layers
skipped, to the bit. Training it back to strength is `distillation`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import LayerStack, find_layers, size_names
from edgekit.pruning.rebuild import copy_config, rebuild


def check_count(count: int, stack: LayerStack) -> None:
    """Refuses a number of layers that `stack` does not have.

    Raises:
        UsageError: the number is out of range.
    """
    if not 1 <= count <= stack.applications:
        raise UsageError(f"layers: found {count}, expected 1 to {stack.applications}, the layers that the model has.")


def check_indices(kept: Sequence[int], stack: LayerStack) -> None:
    """Refuses indices of layers that `stack` does not have.

    Raises:
        UsageError: an index is out of range or comes twice, or there is none.
    """
    wrong = [index for index in kept if not 0 <= index < stack.applications]
    if wrong or not kept or len(set(kept)) != len(kept):
        raise UsageError(
            f"keep_layers: found {list(kept)}, expected distinct indices from 0 to {stack.applications - 1}, "
            "the layers that the model has."
        )


def choose_uniformly(count: int, stack: LayerStack) -> tuple[int, ...]:
    """Returns `count` layers evenly spaced, the last always among them: layer `floor((k + 1) * total / count) - 1`.

    So 3 of 6 gives 1, 3, 5 (after healing 84.2 % against 83.8 % for 0, 2, 4; docs/prune.md). A first layer that
    is built differently from the others (ModernBERT) is kept, and the rest spread over the remaining ones.

    Raises:
        UsageError: `count` is out of range.
    """
    check_count(count, stack)
    pinned = pinned_layers(stack)
    free = [index for index in range(stack.applications) if index not in pinned]
    wanted = count - len(pinned)
    spread = [free[(place + 1) * len(free) // wanted - 1] for place in range(wanted)]
    return tuple(sorted([*pinned, *spread]))


def choose_by_influence(count: int, stack: LayerStack, influence: Sequence[float]) -> tuple[int, ...]:
    """Returns the `count` layers that change their input most; of equals, the earlier ones.

    Args:
        count: layers to keep.
        stack: the model's layers.
        influence: one number a layer, larger for the more important.

    Raises:
        UsageError: `count` is out of range.
    """
    check_count(count, stack)
    pinned = pinned_layers(stack)
    free = [index for index in range(stack.applications) if index not in pinned]
    ranked = sorted(free, key=lambda index: (-influence[index], index))
    return tuple(sorted([*pinned, *ranked[: count - len(pinned)]]))


def pinned_layers(stack: LayerStack) -> tuple[int, ...]:
    """Returns the layers that must stay: the first one when it has other weights than the second, else none."""
    if len(stack.layers) < 2:
        return ()
    first, second = (_shapes(layer) for layer in stack.layers[:2])
    return () if first == second else (0,)


def cut_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Returns a model with only the layers `kept`, in their old order; the rest of its weights are equal.

    Where layers share weights (ALBERT) only the number of times that they are applied changes.

    Raises:
        UsageError: an index is out of range or comes twice.
        UnsupportedError: the layers cannot be found, or the architecture cannot do without one of them.
    """
    stack = find_layers(model)
    check_indices(kept, stack)
    kept = sorted(kept)
    missing = sorted(set(pinned_layers(stack)) - set(kept))
    if missing:
        raise UnsupportedError(
            f"keep_layers: found {kept}, but layer {missing[0]} of model type '{model.config.model_type}' is built "
            "differently from the others and no other can take its place. Keep it."
        )
    if stack.shared and len(stack.layers) > 1:
        raise UnsupportedError(
            f"keep_layers: model type '{model.config.model_type}' applies {len(stack.layers)} layers "
            f"{stack.applications} times in groups; expected one shared layer, or layers with weights of their own."
        )
    config = copy_config(model)
    _cut_lists(config, kept, stack.applications)
    setattr(config, size_names(config).layers, len(kept))
    prefix = f"{stack.name}."

    def rename(name: str) -> str:
        if stack.shared or not name.startswith(prefix):
            return name
        place, rest = name.removeprefix(prefix).split(".", 1)
        return f"{prefix}{kept[int(place)]}.{rest}"

    return rebuild(model, config, rename=rename)


@contextmanager
def skip_layers(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[None]:
    """Makes every layer outside `kept` return its input unchanged while the `with` block lasts."""
    stack = find_layers(model)
    calls = 0

    def skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal calls
        index = calls % stack.applications
        calls += 1
        if index in kept:
            return output
        hidden = layer_input(args, kwargs)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [layer.register_forward_hook(skip, with_kwargs=True) for layer in stack.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Returns the hidden states `(B, T, hidden_size)` among what a layer was called with."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point())


def _cut_lists(config: Any, kept: Sequence[int], total: int) -> None:
    """Cuts the configuration's lists that have one entry a layer, such as `layer_types`."""
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list) and len(value) == total:
            setattr(config, name, [value[index] for index in kept])


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
