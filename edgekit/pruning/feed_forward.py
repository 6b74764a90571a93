"""Keeps some of the neurons of a model's feed-forward blocks and drops the rest: the same number in every layer.

A neuron is one entry between the linear that goes up and the one that goes down; dropping it is setting its activation
to zero. How neurons of a trained student make up for the others is `distillation`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import Linear, find_layers, find_linears
from edgekit.pruning.importance import Calibration
from edgekit.pruning.rebuild import copy_config, rebuild

_SIZE_NAMES = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim")
"""What configurations call the width of their feed-forward blocks."""

Neurons = tuple[tuple[int, ...], ...]
"""For each layer that owns weights, the indices of the neurons to keep, ascending."""


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of one layer."""

    up: tuple[Linear, ...]
    """What makes the neurons: one linear, or two where one is a gate."""
    down: Linear
    """What reads them."""
    size: int
    """Neurons."""


def find_feed_forwards(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """Returns the feed-forward block of each layer that owns weights.

    Raises:
        UnsupportedError: a layer has none, or several (a mixture of experts).
    """
    linears = find_linears(model)
    blocks = []
    for index in range(len(find_layers(model).layers)):
        # Not told by which linear widens: a block may be narrower than the model.
        own = [linear for linear in linears if linear.layer == index and linear.role.startswith("feed_forward")]
        if len(own) not in (2, 3) or not _is_block([linear.module for linear in own]):
            shapes = ", ".join(f"{_inputs(linear.module)} -> {_outputs(linear.module)}" for linear in own) or "none"
            raise UnsupportedError(
                f"intermediate_size: layer {index} of model type '{model.config.model_type}' has these feed-forward "
                f"linears: {shapes}; expected one or two that read the hidden states and one that writes them. Leave "
                "intermediate_size out."
            )
        blocks.append(FeedForward(tuple(own[:-1]), own[-1], _inputs(own[-1].module)))
    return tuple(blocks)


def check_size(size: int, blocks: Sequence[FeedForward]) -> None:
    """Refuses a number of neurons that the blocks do not have.

    Raises:
        UsageError: the number is out of range.
    """
    most = min(block.size for block in blocks)
    if not 1 <= size <= most:
        raise UsageError(f"intermediate_size: found {size}, expected 1 to {most}, the neurons that each layer has.")


def measure_neurons(model: PreTrainedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Returns for each layer how much each neuron adds to the output, (size,) float64, on calibration text.

    It is the root mean square of the neuron's activation over all tokens that are not padding, times the Euclidean
    norm of the weights that read it: Wanda's score (Sun et al. 2023, https://arxiv.org/abs/2306.11695), a column at a
    time.

    Args:
        model: in evaluation mode.
        batches: `input_ids` and `attention_mask`, both int64 (B, T).

    Raises:
        UsageError: the batches hold no token.
        UnsupportedError: a layer has no feed-forward block of the usual shape.
    """
    blocks = find_feed_forwards(model)
    squares = [torch.zeros(block.size, dtype=torch.float64) for block in blocks]
    calibration = Calibration()

    def record(total: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            activations = args[0].reshape(-1, len(total))[calibration.real.reshape(-1)]
            total.add_(activations.double().square().sum(dim=0))

        return hook

    handles = [
        block.down.module.register_forward_pre_hook(record(total)) for block, total in zip(blocks, squares, strict=True)
    ]
    tokens = calibration.run(model, batches, handles)
    norms = [torch.linalg.vector_norm(_weight(block.down.module).double(), dim=0) for block in blocks]
    return tuple((total / tokens).sqrt() * norm.detach() for total, norm in zip(squares, norms, strict=True))


def choose_neurons(scores: Sequence[Tensor], size: int) -> Neurons:
    """Returns the `size` neurons of each layer that score highest; of equals, the first ones."""
    kept = []
    for score in scores:
        ranked = sorted(range(len(score)), key=lambda neuron: (-float(score[neuron]), neuron))
        kept.append(tuple(sorted(ranked[:size])))
    return tuple(kept)


def cut_feed_forwards(model: PreTrainedModel, neurons: Neurons) -> PreTrainedModel:
    """Returns a model with only the neurons `neurons`; the rest of its weights are equal.

    Raises:
        UsageError: an index or a number is out of range.
        UnsupportedError: the blocks cannot be found, or the configuration does not state their width.
    """
    blocks = find_feed_forwards(model)
    size = len(neurons[0])
    check_size(size, blocks)
    config = copy_config(model)
    for name in _size_names(model, blocks[0].size):
        setattr(config, name, size)
    kept: dict[str, tuple[int, tuple[int, ...]]] = {}
    for block, chosen in zip(blocks, neurons, strict=True):
        wide = torch.arange(block.size)[list(chosen)]
        for linear in block.up:
            halves = _outputs(linear.module) // block.size  # 2 where one linear makes gate and neurons
            rows = torch.cat([wide + half * block.size for half in range(halves)])
            dimension = 1 if _is_transposed(linear.module) else 0
            kept[f"{linear.name}.weight"] = (dimension, tuple(rows.tolist()))
            kept[f"{linear.name}.bias"] = (0, tuple(rows.tolist()))
        kept[f"{block.down.name}.weight"] = (0 if _is_transposed(block.down.module) else 1, chosen)

    def adapt(name: str, value: Tensor, shape: Size) -> Tensor:
        if name not in kept:
            return value
        dimension, chosen = kept[name]
        return value.index_select(dimension, torch.tensor(chosen))

    return rebuild(model, config, adapt=adapt)


@contextmanager
def mask_neurons(model: PreTrainedModel, neurons: dict[int, tuple[int, ...]]) -> Iterator[None]:
    """Sets all but these neurons of the layers named to zero while the `with` block lasts."""
    blocks = find_feed_forwards(model)

    def mask(kept: tuple[int, ...], size: int) -> Any:
        keep = torch.zeros(size)
        keep[list(kept)] = 1

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] * keep.to(args[0].dtype), *args[1:])

        return hook

    handles = [
        blocks[layer].down.module.register_forward_pre_hook(mask(kept, blocks[layer].size))
        for layer, kept in neurons.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_block(linears: Sequence[nn.Module]) -> bool:
    """True when the last of `linears` reads what the others make of its output's kind."""
    *up, down = linears
    size, hidden_size = _inputs(down), _outputs(down)
    made = sum(_outputs(linear) for linear in up)
    return all(_inputs(linear) == hidden_size for linear in up) and made in (size, 2 * size)


def _size_names(model: PreTrainedModel, size: int) -> list[str]:
    """Returns what the configuration calls the width: an entry beside it that the architecture ignores counts too."""
    names = [name for name in _SIZE_NAMES if getattr(model.config, name, None) == size]
    # GPT-2 leaves it open where it is four times the hidden size.
    if hasattr(model.config, "n_inner") and model.config.n_inner is None and size == 4 * model.config.hidden_size:
        names.append("n_inner")
    if names:
        return names
    raise UnsupportedError(
        f"intermediate_size: none of {', '.join(_SIZE_NAMES)} in the configuration of model type "
        f"'{model.config.model_type}' is {size}, the width of its feed-forward blocks. Leave intermediate_size out."
    )


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _weight(module: nn.Module) -> Tensor:
    """Returns the weight of a linear as (outputs, inputs)."""
    weight: Any = module.weight
    result: Tensor = weight.t() if _is_transposed(module) else weight
    return result


def _inputs(module: nn.Module) -> int:
    return int(_weight(module).shape[1])


def _outputs(module: nn.Module) -> int:
    return int(_weight(module).shape[0])
