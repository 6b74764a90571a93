"""Counts the bytes that one step of decoding must read, from the files of an export or a model; nothing is run.

Weights count as they are stored, tables of which a step looks up one row (embeddings, positions, rotary angles) as that
row. A table that is the head as well is read whole. Keys and values count as the runtime keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.runtimes.protocol import ModelOnDisk, model_file

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto
    from transformers import PretrainedConfig

_FLOAT32, _FLOAT16 = 4, 2
# Operator to the inputs of which it reads a row a token.
_LOOKUPS = {"Gather": {0}, "GatherBlockQuantized": {0, 2, 3}, "GroupQueryAttention": {7, 8}}
_GGUF_TABLES = ("token_embd.weight", "position_embd.weight")
_GGUF_HEAD = "output.weight"


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer."""

    bytes_per_token: int
    """Keys and values of one token."""
    window: int | None
    """Last tokens that a query sees; None: all."""


@dataclass(frozen=True)
class StepBytes:
    """What one step reads."""

    weights: int
    """Bytes whatever the context."""
    caches: tuple[LayerCache, ...]
    """One entry a layer."""

    def at(self, context_tokens: int) -> int:
        """Returns the bytes of a step after `context_tokens` tokens."""
        seen = [min(context_tokens, cache.window or context_tokens) for cache in self.caches]
        return self.weights + sum(
            cache.bytes_per_token * tokens for cache, tokens in zip(self.caches, seen, strict=True)
        )


def count_step_bytes(model: ModelOnDisk) -> StepBytes | None:
    """Returns the bytes of a step; None where they cannot be told.

    That is where the package that reads such a file is not installed, or where neither the file nor a configuration
    beside it tells the size of a head.

    Raises:
        ArtifactError: the artifact holds no model file.
        ModelError: the file cannot be read.
    """
    file = model_file(model)
    needs, count = _COUNTERS[file.suffix]
    if any(find_spec(package) is None for package in needs):
        return None
    return count(file)


def _count_onnx(file: Path) -> StepBytes | None:
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    uses = [
        (name, place in _LOOKUPS.get(node.op_type, ()))
        for node in graph.node
        for place, name in enumerate(node.input)
        if name
    ]
    read_whole = {name for name, is_lookup in uses if not is_lookup}
    used = {name for name, _ in uses}
    weights = 0
    for tensor in graph.initializer:
        if tensor.name in read_whole:
            weights += _tensor_bytes(tensor)
        elif tensor.name in used:
            weights += _tensor_bytes(tensor) // max(1, tensor.dims[0])
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    caches = tuple(_onnx_cache(graph, node) for node in attentions)
    if all(cache.bytes_per_token for cache in caches):
        return StepBytes(weights, caches)
    # onnxruntime-genai's builder writes no head size into the shapes; the configuration beside the file has it
    config = _configuration_beside(file)
    return None if config is None else StepBytes(weights, _caches(config, _FLOAT32))


def _configuration_beside(file: Path) -> PretrainedConfig | None:
    if not (file.parent / "config.json").is_file() or find_spec("transformers") is None:
        return None
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
    return config


def _onnx_cache(graph: GraphProto, attention: NodeProto) -> LayerCache:
    """Returns the cache of one attention, from the shape (B, M, P, D) of its past keys and values."""
    window = next((each.i for each in attention.attribute if each.name == "local_window_size"), -1)
    total = 0
    for value in graph.input:
        if value.name in attention.input[3:5]:
            _, heads, _, size = value.type.tensor_type.shape.dim
            total += int(heads.dim_value * size.dim_value) * math.ceil(_element_bytes(value.type.tensor_type.elem_type))
    return LayerCache(total, window if window > 0 else None)


def _tensor_bytes(tensor: TensorProto) -> int:
    return math.ceil(int(math.prod(tensor.dims)) * _element_bytes(tensor.data_type))


def _element_bytes(data_type: int) -> float:
    import onnx

    if data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 0.5
    return float(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _count_gguf(file: Path) -> StepBytes:
    from edgekit.models.gguf_configuration import configuration_of
    from edgekit.models.gguf_header import read_header

    header = read_header(file)
    tied = _GGUF_HEAD not in header.tensors
    weights = 0
    for name, entry in header.tensors.items():
        looked_up = name in _GGUF_TABLES and not (tied and name == _GGUF_TABLES[0])
        weights += entry.bytes // entry.shape[0] if looked_up else entry.bytes
    rows = header.tensors[_GGUF_TABLES[0]].shape[0]
    config = configuration_of(header.metadata, rows, tied=tied)
    return StepBytes(weights, _caches(config, _FLOAT16))  # llama.cpp's default cache


def _count_torch(file: Path) -> StepBytes:
    from edgekit.models.weights import tensor_sizes

    config, tables, head = _torch_tables(file.parent)
    sizes = tensor_sizes(file.parent)
    held = {name.rpartition(".")[0] for name in sizes}
    whole = tables[0] == head or not {tables[0], head} <= held  # one tensor for both: the head reads all of it
    looked_up = set(tables[1:] if whole else tables)
    weights = 0
    for name, size in sizes.items():
        # floats are float32 in memory, whatever they are stored as; codes and their scales stay what they are
        width = _FLOAT32 if size.is_float and not name.endswith("_scales") else size.element_bytes
        count = math.prod(size.shape)
        rows = size.shape[0] if name.rpartition(".")[0] in looked_up else 1
        weights += count * width // max(1, rows)
    return StepBytes(weights, _caches(config, _FLOAT32))


def _torch_tables(directory: Path) -> tuple[PretrainedConfig, list[str], str]:
    """Returns the configuration, the names of the tables (tokens first) and of the head; no weight is allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgekit.models.quiet import quiet_transformers
    from edgekit.models.structure import find_embeddings

    with torch.device("meta"), quiet_transformers():
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        network = AutoModelForCausalLM.from_config(config)
    found = find_embeddings(network)
    tables = [found.word.name, *([found.position.name] if found.position else [])]
    output = network.get_output_embeddings()
    head = next((name for name, module in network.named_modules() if module is output), "")
    return config, tables, head


def _caches(config: PretrainedConfig, element_bytes: int) -> tuple[LayerCache, ...]:
    """Returns the caches of a configuration's layers; a layer of the kind `sliding_attention` sees its window only."""
    from edgekit.models.gguf_configuration import head_size

    settings: Any = config.get_text_config()
    heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
    size = 2 * int(heads) * head_size(settings) * element_bytes
    layers = int(settings.num_hidden_layers)
    kinds = getattr(settings, "layer_types", None) or ["full_attention"] * layers
    window = getattr(settings, "sliding_window", None)
    return tuple(LayerCache(size, window if kind == "sliding_attention" else None) for kind in kinds)


_COUNTERS: dict[str, tuple[tuple[str, ...], Callable[[Path], StepBytes | None]]] = {
    ".onnx": (("onnx",), _count_onnx),
    ".gguf": (("gguf", "transformers"), _count_gguf),
    ".safetensors": (("torch", "transformers"), _count_torch),
}
