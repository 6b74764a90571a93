"""Before tracing, swaps the parts of a model that a runtime has operators for by modules that emit those operators.

Linears, embeddings and activations become placeholders of the domain `edgekit`, which name the module that they stand
for and which `lowering` replaces; attention becomes `com.microsoft::MultiHeadAttention` through transformers'
`AttentionInterface`. So no graph pattern is ever searched for, and any architecture that uses the interface is fused.
It knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.models.quantized import QuantizedEmbedding, QuantizedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOMAIN = "edgekit"
MICROSOFT = "com.microsoft"
ATTENTION = "edgekit-onnx"

# What attention functions are passed and what changes nothing here: the mask says it already, or it is for training.
_HARMLESS = {"dropout", "sliding_window", "deterministic", "is_causal", "position_ids", "cache_position"}
_HARMLESS |= {"output_attentions", "output_hidden_states", "return_dict", "use_cache", "cu_seq_lens_q", "cu_seq_lens_k"}


class CannotFuseError(Exception):
    """An attention computes something that the fused operator does not; the plain graph is exported instead."""


class Placeholder(nn.Module):
    """Emits `edgekit::OP(inputs)` with the module's name; keeps the module for models that read its attributes."""

    def __init__(self, operator: str, module: nn.Module, name: str, features: int | None) -> None:
        super().__init__()
        self._operator = f"{DOMAIN}::{operator}"
        self._module_name = name
        self._features = features
        self.original = module

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns a tensor of the shape and type that the module would."""
        shape = [*inputs.shape]
        if self._operator.endswith("Embedding"):
            shape.append(self._features)
        elif self._features is not None:
            shape[-1] = self._features
        attributes: dict[str, Any] = {"module": self._module_name}
        return torch.onnx.ops.symbolic(
            self._operator, [inputs], attributes, dtype=torch.float32, shape=shape, version=1
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original"), name)


@contextmanager
def substituted(model: PreTrainedModel, *, fuse_attention: bool) -> Iterator[None]:
    """Swaps linears, embeddings, activations and, on request, attention inside the `with` block; then restores all.

    Module names in the placeholders are those of `model`. `fuse_attention` must only be asked for where
    `can_fuse_attention` is true.
    """
    implementation = model.config._attn_implementation
    with swapped_modules(model, placeholder):
        try:
            with _attention_registered():
                model.set_attn_implementation(ATTENTION if fuse_attention else "eager")
                yield
        finally:
            model.set_attn_implementation(implementation)


@contextmanager
def swapped_modules(model: nn.Module, replace: Callable[[nn.Module, str], nn.Module | None]) -> Iterator[None]:
    """Puts `replace(module, name)` wherever it is not None in the place of a module inside the `with` block.

    Embeddings with a `forward` of their own (an offset, a scale) keep it; only the lookup inside becomes a placeholder.
    """
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    names = {module: name for name, module in model.named_modules()}
    lookups = {module: placeholder for module, name in names.items() if (placeholder := _lookup(module, name))}
    original = nn.Embedding.forward

    def look_up(self: nn.Embedding, input: Tensor) -> Tensor:
        return lookups[self](input) if self in lookups else original(self, input)

    try:
        nn.Embedding.forward = look_up  # type: ignore[method-assign]
        for parent in list(model.modules()):
            for key, child in list(parent.named_children()):
                substitute = replace(child, names[child])
                if substitute is not None:
                    swapped.append((parent, key, child))
                    setattr(parent, key, substitute)
        yield
    finally:
        nn.Embedding.forward = original  # type: ignore[method-assign]
        for parent, key, child in swapped:
            setattr(parent, key, child)


def can_fuse_attention(model: PreTrainedModel) -> bool:
    """Returns whether the model's attention goes through transformers' `AttentionInterface`."""
    return bool(model._can_set_attn_implementation())


def placeholder(module: nn.Module, name: str) -> Placeholder | None:
    """Returns what stands for a linear, an embedding or an activation while a model is traced; None for the rest."""
    if isinstance(module, QuantizedLinear) or type(module).forward is nn.Linear.forward:
        return Placeholder("Linear", module, name, int(module.out_features))  # type: ignore[arg-type]
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # a linear with its weight transposed
        return Placeholder("Linear", module, name, int(module.nf))  # type: ignore[arg-type]
    if isinstance(module, QuantizedEmbedding) or type(module).forward is nn.Embedding.forward:
        return Placeholder("Embedding", module, name, int(module.embedding_dim))  # type: ignore[arg-type]
    operator = _activation_operator(module)
    return None if operator is None else Placeholder(operator, module, name, None)


def _lookup(module: nn.Module, name: str) -> Placeholder | None:
    """Returns what stands for the lookup inside an embedding that does more."""
    if isinstance(module, nn.Embedding) and type(module).forward is not nn.Embedding.forward:
        return Placeholder("Embedding", module, name, module.embedding_dim)
    return None


def _activation_operator(module: nn.Module) -> str | None:
    from transformers import activations

    if isinstance(module, (activations.GELUActivation, nn.GELU)) and getattr(module, "approximate", "none") == "none":
        return "Gelu"
    tanh = (activations.NewGELUActivation, activations.FastGELUActivation, activations.GELUTanh)
    return "GeluTanh" if isinstance(module, (*tanh, nn.GELU)) else None


@contextmanager
def _attention_registered() -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)
    try:
        yield
    finally:
        AttentionInterface._global_mapping.pop(ATTENTION, None)
        AttentionMaskInterface._global_mapping.pop(ATTENTION, None)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Returns the padding mask (B, T) where nothing else is masked, else all of the mask as bool (B, 1, S, T)."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    if mask_function is bidirectional_mask_function and attention_mask is not None:
        return attention_mask
    settings |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Any = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **settings,
    )
    fallback: Tensor = mask
    return fallback


def _attention(  # noqa: PLR0913 - the signature that transformers calls
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Emits MultiHeadAttention: query (B, N, S, D), key and value (B, M, T, D) -> (B, S, N, D).

    Raises:
        CannotFuseError: the model asks for something that the operator does not compute.
    """
    _refuse_unknown(module, attention_mask, settings)
    batch, heads, length, size = query.shape
    repeats = heads // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    joined = [states.transpose(1, 2).flatten(2) for states in (query, key, value)]  # (B, S, N * D)
    if attention_mask is not None and attention_mask.ndim == 2:
        masks: list[Tensor | None] = [attention_mask.to(torch.int32)]
    else:
        masks = [None, _bias(attention_mask, length)]
    attributes: dict[str, Any] = {"num_heads": int(heads), "scale": float(size**-0.5 if scaling is None else scaling)}
    shape = (batch, length, joined[2].shape[2])
    output = torch.onnx.ops.symbolic(
        f"{MICROSOFT}::MultiHeadAttention",
        [*joined, None, *masks],
        attributes,
        dtype=torch.float32,
        shape=shape,
        version=1,
    )
    return output.unflatten(2, (heads, -1)), None


def _bias(mask: Tensor | None, length: int) -> Tensor:
    """Returns the mask as a number to add to the scores, (B or 1, N or 1, S, T)."""
    if mask is None or mask.ndim != 4:
        raise CannotFuseError("no attention mask, or one of another shape, reaches the attention")
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    return mask.expand(-1, -1, length, -1)


def _refuse_unknown(module: nn.Module, mask: Tensor | None, settings: dict[str, Any]) -> None:
    unknown = sorted(key for key, value in settings.items() if value is not None and key not in _HARMLESS)
    if unknown:
        raise CannotFuseError(f"{type(module).__name__} passes {', '.join(unknown)} to its attention")
    if mask is not None and mask.ndim == 2 and (settings.get("is_causal") or getattr(module, "is_causal", False)):
        raise CannotFuseError(f"{type(module).__name__} is causal, and its mask does not say so")
