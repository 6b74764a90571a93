"""Loads a language model from one GGUF file: weights decoded to float32, tokenizer, chat template, ends of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ModelError
from edgekit.models.gguf_configuration import configuration_of, rope_factors
from edgekit.models.gguf_header import GgufHeader, TensorEntry, read_header
from edgekit.models.gguf_tokenizer import end_tokens, tokenizer_from
from edgekit.models.gguf_weights import HEAD, Placement, model_rows, placements
from edgekit.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_EMBEDDING, _ROPE_FACTORS = "token_embd.weight", "rope_freqs.weight"
# Llama 3's own numbers, which a GGUF stores only as their result.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF holds, in memory."""

    network: PreTrainedModel
    """Float32, in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    types: dict[str, int]
    """Quantization of the file to the number of weights that it holds."""


def load_gguf(file: Path) -> GgufModel:
    """Returns the model in `file`; every weight of the architecture must be there, and nothing else.

    Raises:
        ModelError: not whole, not readable, of an architecture or tokenizer that edgekit does not read.
        EnvironmentLacksError: the package `gguf` is not installed.
    """
    header = read_header(file)
    try:
        network = _network(header)
        tokenizer = tokenizer_from(header.metadata)
        _fill(network, file, header)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    _set_special_tokens(network, tokenizer, header.metadata)
    types: dict[str, int] = {}
    for entry in header.tensors.values():
        types[entry.type] = types.get(entry.type, 0) + int(np.prod(entry.shape))
    return GgufModel(network, tokenizer, dict(sorted(types.items())))


def _network(header: GgufHeader) -> PreTrainedModel:
    """Returns the empty network."""
    import torch
    from transformers import AutoModelForCausalLM

    if _EMBEDDING not in header.tensors:
        raise ModelError(f"lacks the tensor '{_EMBEDDING}'. Download it again.")
    rows = header.tensors[_EMBEDDING].shape[0]
    config = configuration_of(header.metadata, rows, tied=HEAD not in header.tensors)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        try:
            network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        except (ValueError, RuntimeError, TypeError, KeyError, ZeroDivisionError, AssertionError) as error:
            raise ModelError(f"its metadata describe no {config.model_type} model ({error}).") from error
    return network


def _fill(network: PreTrainedModel, file: Path, header: GgufHeader) -> None:
    """Copies every tensor into its weight."""
    import torch

    data = np.memmap(file, dtype=np.uint8, mode="r")
    found = placements(network, head=HEAD in header.tensors)
    lacking = [place.tensor for place in found if place.tensor not in header.tensors]
    if lacking:
        raise ModelError(f"lacks {len(lacking)} of {len(found)} tensors, first '{lacking[0]}'. Download it again.")
    unknown = sorted(set(header.tensors) - {place.tensor for place in found} - {_ROPE_FACTORS})
    if unknown:
        raise ModelError(
            f"holds {len(unknown)} tensors that {network.config.model_type} has no place for, first '{unknown[0]}'."
        )
    state = network.state_dict()
    with torch.no_grad():
        for place in found:
            values = _model_values(place, _decode(data, header.tensors[place.tensor]))
            weight = state[place.weight]
            if tuple(weight.shape) != values.shape:
                raise ModelError(
                    f"the tensor '{place.tensor}' has the shape {values.shape}, its metadata say {tuple(weight.shape)}."
                )
            weight.copy_(torch.from_numpy(values))
    network.tie_weights()
    if _ROPE_FACTORS in header.tensors:
        _set_rope_factors(network, _decode(data, header.tensors[_ROPE_FACTORS]))


def _decode(data: np.ndarray, entry: TensorEntry) -> np.ndarray:
    """Returns the numbers of a tensor, float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    raw = data[entry.offset : entry.offset + entry.bytes]
    kind = GGMLQuantizationType[entry.type]
    if entry.type in ("F32", "F16"):
        return raw.view("<f4" if entry.type == "F32" else "<f2").astype(np.float32).reshape(entry.shape)
    rows = int(np.prod(entry.shape[:-1]))
    return np.asarray(dequantize(raw.reshape(rows, -1), kind), dtype=np.float32).reshape(entry.shape)


def _model_values(place: Placement, values: np.ndarray) -> np.ndarray:
    """Undoes what `Placement` says was done for the file."""
    if place.heads is not None:
        values = values[model_rows(len(values), place.heads)]
    if place.offset:
        values = values - np.float32(place.offset)
    return np.ascontiguousarray(values.T if place.transposed else values)


def _set_rope_factors(network: PreTrainedModel, stored: np.ndarray) -> None:
    """Finds the rotary scaling that gives the stored divisors, and sets it."""
    config: PretrainedConfig = network.config
    scaling = {**config.rope_parameters, "rope_type": "llama3", "factor": float(stored.max()), **_LLAMA3}
    for original in (8192, config.max_position_embeddings):
        config.rope_parameters = {**scaling, "original_max_position_embeddings": original}
        made = rope_factors(config)
        if made is not None and np.allclose(made, stored, rtol=1e-4):
            # The frequencies were made with the network, from the configuration without scaling.
            rebuilt = type(network.model.rotary_emb)(config)
            network.model.rotary_emb = rebuilt.eval()
            return
    raise ModelError(
        f"its '{_ROPE_FACTORS}' are not those of Llama 3's rotary scaling. Import the transformers directory that the "
        "file was made from."
    )


def _set_special_tokens(network: PreTrainedModel, tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Writes the ids into both configurations; several ends of text only where generation asks for them."""
    ends = end_tokens(metadata)
    for config in (network.config, network.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    if len(ends) > 1:
        network.generation_config.eos_token_id = ends
