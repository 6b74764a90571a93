"""The torch model that an export must agree with: its weights as the file holds them, its ranges as the file takes them."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedError
from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear, replace_module
from edgekit.models.source import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


EXPORT_FILE = "export.json"

Precision = Literal["as-is", "float32", "float16"]


def load_reference(model: Artifact, export: Artifact) -> PreTrainedModel:
    """Returns the torch model of `model` computing what `export`, which was made from it, computes.

    Raises:
        ModelError: the model cannot be read.
    """
    description = json.loads((export.path / EXPORT_FILE).read_text(encoding="utf-8"))
    network = at_precision(load_model(model).model, description["precision"])
    for name in description["first_token_modules"]:
        module = network.get_submodule(name)
        if isinstance(module, QuantizedLinear):
            module.reads_first_token = True
    return network


def at_precision(network: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    """Returns `network` itself ("as-is"), or a copy on float weights, for "float16" rounded to what float16 holds.

    Raises:
        UnsupportedError: a weight is beyond float16.
    """
    if precision == "as-is":
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            replace_module(network, module, _dequantized(module))
    if precision == "float16":
        for name, parameter in network.named_parameters():
            parameter.data = _rounded(name, parameter.data)
    return network


def _dequantized(module: QuantizedLinear | QuantizedEmbedding) -> nn.Module:
    weight = nn.Parameter(module.quantized_weight().dequantize(), requires_grad=False)
    if isinstance(module, QuantizedEmbedding):
        return nn.Embedding(module.num_embeddings, module.embedding_dim, module.padding_idx, _weight=weight)
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight = weight
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias, requires_grad=False)
    return linear


def _rounded(name: str, weights: torch.Tensor) -> torch.Tensor:
    rounded = weights.half()
    if not torch.isfinite(rounded).all():
        largest = weights.abs().max()
        raise UnsupportedError(f"float16: '{name}' holds {largest:.3g}, beyond float16's 65504. Export float32.")
    return rounded.float()
