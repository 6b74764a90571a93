"""Writes a language model as one GGUF file for llama.cpp, and reads it back to prove that it holds the same numbers.

Codes become blocks bit for bit (`gguf_blocks.py`), floats stay floats. It knows nothing of artifacts or stages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from edgekit.errors import ModelError, UnsupportedError
from edgekit.exporters.gguf_blocks import encode
from edgekit.models.gguf_architectures import architecture_of
from edgekit.models.gguf_configuration import metadata_of, rope_factors
from edgekit.models.gguf_vocabulary import vocabulary_of
from edgekit.models.gguf_weights import Placement, placements, stored_rows
from edgekit.models.quantized import QuantizedModule, QuantizedTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgekit.models.source import LoadedModel

Floats = Literal["F32", "F16"]
_ALWAYS_F32 = ("position_embd.weight",)
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as it goes into the file."""

    name: str
    type: str
    """`F32`, `F16`, or a block type."""
    data: np.ndarray
    """float32 or float16 in the tensor's shape, or uint8 `(out, bytes of a row)`."""
    values: np.ndarray
    """What the file must give back: float32 in the tensor's shape."""


@dataclass(frozen=True)
class GgufExport:
    """What was written."""

    architecture: str
    """llama.cpp's name."""
    types: dict[str, int]
    """Tensor type to the number of tensors, sorted by name."""
    context_length: int
    """Tokens that the file says it takes."""
    notes: list[str]
    """What a person should know."""


def export_gguf(loaded: LoadedModel, file: Path, *, floats: Floats = "F32", lineage: Mapping[str, str]) -> GgufExport:
    """Writes `file` and checks it; equal models give equal bytes.

    Matrices that hold no codes are stored as `floats`, vectors as F32. `lineage` is written under `edgekit.*`.

    Raises:
        UnsupportedError: an architecture, scheme or tokenizer that llama.cpp does not have, or a float beyond F16.
        ModelError: the file does not give back what was written into it.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    config = loaded.model.config
    hyperparameters, notes = metadata_of(config)
    vocabulary = vocabulary_of(loaded.tokenizer, config.vocab_size, loaded.model.generation_config)
    tensors = list(_tensors(loaded, floats))
    types = Counter(tensor.type for tensor in tensors)
    writer = GGUFWriter(None, architecture_of(config).name)
    writer.add_file_type(_FILE_TYPES[_heaviest(tensors)])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    for key, value in {**hyperparameters, **vocabulary.metadata}.items():
        _add(writer, key, value)
    for key, text in sorted(lineage.items()):
        writer.add_string(f"edgekit.{key}", text)
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=GGMLQuantizationType[tensor.type])
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_file(file, tensors)
    return GgufExport(
        architecture=architecture_of(config).name,
        types=dict(sorted(types.items())),
        context_length=int(hyperparameters[f"{architecture_of(config).name}.context_length"]),
        notes=[*notes, *vocabulary.notes],
    )


def check_file(file: Path, tensors: list[GgufTensor]) -> None:
    """Reads `file` with the `gguf` package and compares every tensor's numbers with those that it must hold.

    Raises:
        ModelError: a tensor is missing or differs.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    if sorted(found) != sorted(tensor.name for tensor in tensors):
        raise ModelError(f"{file}: found {len(found)} tensors, expected {len(tensors)}. The disk may be failing.")
    for tensor in tensors:
        stored = found[tensor.name]
        values = dequantize(stored.data, stored.tensor_type).reshape(tensor.values.shape)
        if stored.tensor_type.name != tensor.type or not np.array_equal(values, tensor.values):
            raise ModelError(f"{file}: the tensor '{tensor.name}' is not what was written. Export again.")


def _tensors(loaded: LoadedModel, floats: Floats) -> Iterator[GgufTensor]:
    factors = rope_factors(loaded.model.config)
    if factors is not None:
        yield GgufTensor("rope_freqs.weight", "F32", factors, factors)
    modules = dict(loaded.model.named_modules())
    state = loaded.model.state_dict()
    head = not architecture_of(loaded.model.config).ties_head or not _shares_head(loaded.model)
    for placement in placements(loaded.model, head=head):
        module_name, _, part = placement.weight.rpartition(".")
        module = modules[module_name]
        if isinstance(module, QuantizedModule) and part == "weight":
            yield _coded(placement, module.quantized_weight())
        else:
            yield _float(placement, state[placement.weight], floats)


def _shares_head(model: PreTrainedModel) -> bool:
    """Returns whether head and embedding are the same numbers in the same form, so that one of them is enough."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if isinstance(head, QuantizedModule) != isinstance(embedding, QuantizedModule) or head is None:
        return False
    if not isinstance(head, QuantizedModule) or not isinstance(embedding, QuantizedModule):
        return torch.equal(head.weight, embedding.weight)
    first, second = head.quantized_weight(), embedding.quantized_weight()
    if (first.scheme.bits, first.scheme.symmetric) != (second.scheme.bits, second.scheme.symmetric):
        return False
    zeros = first.zero_points, second.zero_points
    return (
        torch.equal(first.codes, second.codes)
        and torch.equal(first.scales, second.scales)
        and (zeros[0] is None or zeros[1] is None or torch.equal(zeros[0], zeros[1]))
    )


def _coded(placement: Placement, weight: QuantizedTensor) -> GgufTensor:
    if placement.heads is not None:
        order = torch.from_numpy(stored_rows(len(weight.codes), placement.heads))
        zeros = weight.zero_points
        weight = QuantizedTensor(
            weight.codes[order], weight.scales[order], None if zeros is None else zeros[order], weight.scheme
        )
    try:
        blocks = encode(weight)
    except UnsupportedError as error:
        raise UnsupportedError(f"module '{placement.weight.removesuffix('.weight')}': {error}") from error
    return GgufTensor(placement.tensor, blocks.type, blocks.data, weight.dequantize().numpy())


def _float(placement: Placement, weight: torch.Tensor, floats: Floats) -> GgufTensor:
    values = weight.detach().float().numpy()
    values = np.ascontiguousarray(values.T if placement.transposed else values)
    if placement.heads is not None:
        values = values[stored_rows(len(values), placement.heads)]
    values = values + np.float32(placement.offset) if placement.offset else values
    if values.ndim < 2 or floats == "F32" or placement.tensor in _ALWAYS_F32:
        return GgufTensor(placement.tensor, "F32", values, values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise UnsupportedError(f"gguf: the weight '{placement.weight}' has values beyond float16. Write it as float32.")
    return GgufTensor(placement.tensor, "F16", half, half.astype(np.float32))


def _heaviest(tensors: list[GgufTensor]) -> str:
    """Returns the type that most weights have: what llama.cpp calls the file's."""
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.type] += tensor.values.size
    return max(sorted(weights), key=lambda name: weights[name])


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
