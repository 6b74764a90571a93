"""What llama.cpp and transformers call the same architecture, and where a GGUF keeps what a configuration says.

One table serves both directions, writing and reading (`gguf_configuration.py`). What llama.cpp has built in and a
GGUF cannot say is listed in the table, and refused when a model differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Metadata = dict[str, Any]
"""Key to value as in the file: int, float, bool, str, or a list of one of them."""


@dataclass(frozen=True)
class Field:
    """A number that both sides have."""

    key: str
    """GGUF key, without the architecture's name before it."""
    attribute: str
    """Attribute of the configuration."""
    is_float: bool = False
    """True for a float32, False for an unsigned integer."""
    default: float | None = None
    """What llama.cpp takes where the key is missing; None: the key is needed."""


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    model_type: str
    """Name in transformers."""
    name: str
    """Name in GGUF."""
    fields: tuple[Field, ...]
    """Numbers of the configuration."""
    permuted: bool = False
    """llama.cpp rotates neighbouring channels, so that query and key rows are stored in another order."""
    norm_offset: float = 0.0
    """Added to norm weights: Gemma's norms multiply by one plus the weight."""
    ties_head: bool = True
    """False where llama.cpp asks for a head of its own, even if it equals the embedding."""
    biases: bool = False
    """True where llama.cpp adds biases of linears."""
    fixed: Mapping[str, tuple[Any, ...]] | None = None
    """Attributes that llama.cpp has built in, and the values that it can compute."""
    windows: bool = False
    """True where llama.cpp computes sliding windows. Elsewhere a model is exact within its window only."""


_SIZES = (
    Field("context_length", "max_position_embeddings"),
    Field("embedding_length", "hidden_size"),
    Field("block_count", "num_hidden_layers"),
    Field("feed_forward_length", "intermediate_size"),
    Field("attention.head_count", "num_attention_heads"),
    Field("attention.head_count_kv", "num_key_value_heads", default=math.nan),
    Field("attention.layer_norm_rms_epsilon", "rms_norm_eps", is_float=True),
)
_GPT2_SIZES = (
    Field("context_length", "n_positions"),
    Field("embedding_length", "n_embd"),
    Field("block_count", "n_layer"),
    Field("feed_forward_length", "n_inner"),
    Field("attention.head_count", "n_head"),
    Field("attention.layer_norm_epsilon", "layer_norm_epsilon", is_float=True),
)
_GRANITE = (
    Field("attention.scale", "attention_multiplier", is_float=True),
    Field("embedding_scale", "embedding_multiplier", is_float=True, default=1.0),
    Field("residual_scale", "residual_multiplier", is_float=True, default=1.0),
    Field("logit_scale", "logits_scaling", is_float=True),
)
_SILU = {"hidden_act": ("silu", "swish"), "mlp_bias": (False, None)}
_GEMMA3 = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
}
_GPT2 = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("llama", "llama", _SIZES, permuted=True, biases=True, fixed={"hidden_act": ("silu", "swish")}),
    Architecture("mistral", "llama", _SIZES, permuted=True, biases=True, fixed=_SILU),
    Architecture("qwen2", "qwen2", _SIZES, biases=True, fixed=_SILU),
    Architecture("qwen3", "qwen3", _SIZES, fixed=_SILU),
    Architecture("gemma3_text", "gemma3", _SIZES, norm_offset=1.0, fixed=_GEMMA3, windows=True),
    Architecture("phi3", "phi3", _SIZES, fixed=_SILU),
    Architecture("smollm3", "smollm3", _SIZES, permuted=True, fixed=_SILU),
    Architecture("granite", "granite", (*_SIZES, *_GRANITE), permuted=True, fixed=_SILU),
    Architecture("olmo2", "olmo2", _SIZES, ties_head=False, fixed=_SILU),
    Architecture("gpt2", "gpt2", _GPT2_SIZES, biases=True, fixed=_GPT2),
)


def architecture_of(config: PretrainedConfig) -> Architecture:
    """Returns the row of a configuration.

    Raises:
        UnsupportedError: llama.cpp has no such architecture, or edgekit cannot write it.
    """
    for row in ARCHITECTURES:
        if row.model_type == config.model_type:
            return row
    known = ", ".join(row.model_type for row in ARCHITECTURES)
    raise UnsupportedError(f"gguf: found the architecture '{config.model_type}', expected one of {known}.")


def architecture_named(name: str) -> Architecture:
    """Returns the row of a GGUF's `general.architecture`.

    Raises:
        ModelError: edgekit does not read it.
    """
    for row in ARCHITECTURES:
        if row.name == name:
            return row
    known = ", ".join(sorted({row.name for row in ARCHITECTURES}))
    raise ModelError(
        f"found the GGUF architecture '{name}', expected one of {known}. Import the model's transformers directory."
    )
