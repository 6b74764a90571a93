"""Which tensor of a GGUF is which weight of a transformers model, and how the two are laid out differently.

llama.cpp rotates neighbouring channels (2i, 2i + 1) of a head where transformers rotates channels half a head apart
(i, i + half): for the architectures that need it, rows of query and key are stored in llama.cpp's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import UnsupportedError
from edgekit.models.gguf_architectures import Architecture, architecture_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

HEAD = "output.weight"
"""GGUF's name of the head; llama.cpp takes the embedding where it is missing."""

_QUERY = ("q_proj.weight", "q_proj.bias")
_KEY = ("k_proj.weight", "k_proj.bias")


@dataclass(frozen=True)
class Placement:
    """Where a weight goes."""

    weight: str
    """Name in the model."""
    tensor: str
    """Name in the GGUF."""
    heads: int | None
    """Rows are reordered within this many heads; None: they are not."""
    offset: float
    """Added to what is stored."""
    transposed: bool
    """The model keeps the matrix as (in, out)."""


def placements(model: PreTrainedModel, *, head: bool) -> list[Placement]:
    """Returns the placement of every weight, in the model's order; without `head`, of every one but the head's.

    Raises:
        UnsupportedError: llama.cpp has no place for a weight.
    """
    import gguf

    row = architecture_of(model.config)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[row.name], model.config.num_hidden_layers)
    convolutions = {name for name, module in model.named_modules() if _is_transposed(module)}
    found = []
    for weight in _weight_names(model):
        tensor = names.get_name(weight, try_suffixes=(".weight", ".bias"))
        if tensor is None or (weight.endswith("_proj.bias") and not row.biases):
            raise UnsupportedError(f"gguf: found the weight '{weight}', for which llama.cpp's {row.name} has no place.")
        if tensor == HEAD and not head:
            continue
        module, _, part = weight.rpartition(".")
        found.append(
            Placement(
                weight,
                tensor,
                heads=_heads(row, model.config, weight),
                offset=row.norm_offset if weight.endswith("norm.weight") else 0.0,
                transposed=module in convolutions and part == "weight",
            )
        )
    return found


def stored_rows(rows: int, heads: int) -> np.ndarray:
    """Returns which row of the model is row i of the file: int64 `(rows,)`, halves of each head interleaved."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def model_rows(rows: int, heads: int) -> np.ndarray:
    """Returns which row of the file is row i of the model: the inverse of `stored_rows`."""
    return np.argsort(stored_rows(rows, heads))


def _weight_names(model: PreTrainedModel) -> list[str]:
    """Returns the names of all weights, codes under the name of the weight that they stand for, each once."""
    from edgekit.models.quantized import QuantizedModule

    names: dict[str, None] = {}
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedModule)}
    for name in model.state_dict():
        module, _, part = name.rpartition(".")
        names[f"{module}.weight" if module in quantized and part.startswith("weight_") else name] = None
    return list(names)


def _heads(row: Architecture, config: PretrainedConfig, weight: str) -> int | None:
    if not row.permuted:
        return None
    if weight.endswith(_QUERY):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if weight.endswith(_KEY) else None


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
