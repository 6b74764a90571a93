"""A configuration as GGUF metadata and back: sizes, rotary embedding, sliding windows.

What llama.cpp has built in and a GGUF cannot say (`gguf_architectures.py`) is refused when a model differs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ModelError, UnsupportedError
from edgekit.models.gguf_architectures import Architecture, Metadata, architecture_named, architecture_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_SMOLLM3_STEP = 4
_GEMMA3_STEP = 6
_GEMMA3_27B_LAYERS = 62
_FLOAT_DIRECTORY = "Import the transformers directory that the file was made from."


def metadata_of(config: PretrainedConfig) -> tuple[Metadata, list[str]]:
    """Returns the hyperparameters of a configuration as GGUF metadata, and what a person should know of them.

    Raises:
        UnsupportedError: llama.cpp would compute something else than the configuration says.
    """
    row = architecture_of(config)
    _check_fixed(row, config)
    prefix = f"{row.name}."
    metadata: Metadata = {}
    for field in row.fields:
        value = getattr(config, field.attribute)
        if field.attribute == "n_inner" and value is None:
            value = 4 * config.n_embd
        metadata[prefix + field.key] = float(value) if field.is_float else int(value)
    metadata[prefix + "vocab_size"] = int(config.vocab_size)
    notes: list[str] = []
    if row.model_type != "gpt2":
        size = head_size(config)
        metadata |= {prefix + "attention.key_length": size, prefix + "attention.value_length": size}
        metadata |= {prefix + key: value for key, value in _rope_metadata(row, config).items()}
        notes = _windows(row, config, metadata)
    return metadata, notes


def configuration_of(metadata: Metadata, rows: int, *, tied: bool) -> PretrainedConfig:
    """Returns the configuration that GGUF metadata describe, for a vocabulary of `rows` tokens.

    Raises:
        ModelError: a key is missing, or holds what the architecture cannot have.
    """
    from transformers import AutoConfig

    row = architecture_named(str(metadata.get("general.architecture")))
    prefix = f"{row.name}."
    settings: dict[str, Any] = {"vocab_size": rows, "tie_word_embeddings": tied}
    for attribute, name in _TOKENS.items():
        settings[attribute] = metadata.get(f"tokenizer.ggml.{name}_token_id")
    for field in row.fields:
        value = metadata.get(prefix + field.key, field.default)
        if value is None:
            raise ModelError(f"found no metadata '{prefix}{field.key}', which every {row.name} GGUF has.")
        if isinstance(value, list):
            raise ModelError(f"metadata '{prefix}{field.key}': found a value for each layer, expected one for all.")
        settings[field.attribute] = _shortest(value) if field.is_float else value
    if row.model_type != "gpt2":
        if math.isnan(settings["num_key_value_heads"]):
            settings["num_key_value_heads"] = settings["num_attention_heads"]
        settings |= _rope_settings(row, metadata, settings)
    return AutoConfig.for_model(row.model_type, **settings)


def head_size(config: PretrainedConfig) -> int:
    """Returns the channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_factors(config: PretrainedConfig) -> np.ndarray | None:
    """Returns Llama 3's divisors of the rotary frequencies, `(head_size / 2,)` float32; None without that scaling.

    A frequency whose wavelength exceeds `original_max_position_embeddings / low_freq_factor` is divided by `factor`,
    one below `... / high_freq_factor` by 1, and those between by the interpolated value.
    """
    scaling = _rope_of(config)
    if scaling.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    frequencies = float(scaling["rope_theta"]) ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: np.ndarray = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return divisors


def _rope_of(config: PretrainedConfig) -> dict[str, Any]:
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return dict(parameters.get("full_attention", parameters))


def _rope_metadata(row: Architecture, config: PretrainedConfig) -> Metadata:
    scaling = _rope_of(config)
    kind = scaling.get("rope_type", "default")
    known = ("default", "linear", "llama3") if row.name == "llama" else ("default", "linear")
    if kind not in known:
        raise UnsupportedError(
            f"gguf: found rotary scaling of the type '{kind}', expected one of {', '.join(known)} for {row.model_type}."
        )
    rotated = int(head_size(config) * scaling.get("partial_rotary_factor", 1.0))
    metadata: Metadata = {"rope.dimension_count": rotated, "rope.freq_base": float(scaling["rope_theta"])}
    if kind == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if row.model_type == "phi3":
        metadata["rope.scaling.original_context_length"] = int(config.original_max_position_embeddings)
    if row.windows:
        local = config.rope_parameters["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            raise UnsupportedError("gguf: found rotary scaling in the sliding windows, which llama.cpp does not have.")
        metadata["rope.freq_base_swa"] = float(local["rope_theta"])
        if config.final_logit_softcapping is not None:
            metadata["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return metadata


def _rope_settings(row: Architecture, metadata: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    prefix = f"{row.name}."
    size = metadata.get(prefix + "attention.key_length", settings["hidden_size"] // settings["num_attention_heads"])
    kind = metadata.get(prefix + "rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelError(f"found rotary scaling of the type '{kind}', expected none or linear. {_FLOAT_DIRECTORY}")
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _shortest(metadata.get(prefix + "rope.freq_base", 10000.0)),
    }
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": _shortest(metadata[prefix + "rope.scaling.factor"])}
    rotated = metadata.get(prefix + "rope.dimension_count", size)
    if rotated != size:
        rope["partial_rotary_factor"] = rotated / size
    result: dict[str, Any] = {"rope_parameters": rope}
    if size * settings["num_attention_heads"] != settings["hidden_size"] or row.model_type in ("qwen3", "gemma3_text"):
        result["head_dim"] = size
    if row.model_type == "phi3":
        original = metadata.get(prefix + "rope.scaling.original_context_length", settings["max_position_embeddings"])
        result["original_max_position_embeddings"] = original
    if row.windows:
        layers = settings["num_hidden_layers"]
        pattern = metadata.get(prefix + "attention.sliding_window_pattern", _GEMMA3_STEP)
        flags = pattern if isinstance(pattern, list) else [index % pattern < pattern - 1 for index in range(layers)]
        window = metadata.get(prefix + "attention.sliding_window", 0)
        local = {"rope_type": "default", "rope_theta": _shortest(metadata.get(prefix + "rope.freq_base_swa", 10000.0))}
        result |= {
            "layer_types": ["sliding_attention" if flag and window else "full_attention" for flag in flags],
            "sliding_window": window or settings["max_position_embeddings"],
            "query_pre_attn_scalar": size,
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
            "final_logit_softcapping": metadata.get(prefix + "final_logit_softcapping"),
        }
    return result


def _windows(row: Architecture, config: PretrainedConfig, metadata: Metadata) -> list[str]:
    """Adds sliding windows to `metadata`, or shortens the context to where they change nothing, and says so."""
    window: int | None = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    is_off = not getattr(config, "use_sliding_window", True) or (layers and "sliding_attention" not in layers)
    if window is None or is_off:
        return []
    if row.windows:
        flags = [kind == "sliding_attention" for kind in layers or []]
        metadata[f"{row.name}.attention.sliding_window"] = int(window)
        if flags != [index % _GEMMA3_STEP < _GEMMA3_STEP - 1 for index in range(len(flags))]:
            metadata[f"{row.name}.attention.sliding_window_pattern"] = flags
        return []
    key = f"{row.name}.context_length"
    if metadata[key] <= window:
        return []
    note = f"context shortened from {metadata[key]} to {window}: llama.cpp computes {row.model_type} without its window"
    metadata[key] = int(window)
    return [note]


def _check_fixed(row: Architecture, config: PretrainedConfig) -> None:
    """Refuses settings that llama.cpp has built in otherwise."""
    fixed = dict(row.fixed or {})
    if row.model_type == "gemma3_text":
        size = head_size(config)
        is_largest = config.num_hidden_layers == _GEMMA3_27B_LAYERS
        fixed["query_pre_attn_scalar"] = (config.hidden_size // config.num_attention_heads if is_largest else size,)
    if row.model_type == "smollm3":
        steps = range(1, config.num_hidden_layers + 1)
        fixed["no_rope_layers"] = ([int(index % _SMOLLM3_STEP != 0) for index in steps],)
    if not row.biases:
        fixed["attention_bias"] = (False, None)
    for attribute, values in fixed.items():
        found = getattr(config, attribute, values[0])
        found = found[: config.num_hidden_layers] if isinstance(found, list) else found
        if found not in values:
            raise UnsupportedError(
                f"gguf: found {attribute} = {found!r}, expected {values[0]!r}: llama.cpp's {row.name} has it built in."
            )


def _shortest(value: float) -> float:
    """Returns the shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
