"""Finds out, by running a decoder once in torch, what each of its attentions computes, or why it cannot be exported.

One short text goes through the model with an attention function that only takes notes: heads, scale, softcap, which
keys a query may see, and whether the query and key that arrive are just what the rotary embedding returned. So any
architecture that uses transformers' `AttentionInterface` is understood without a table of architectures. It knows
nothing of graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.passing_cache import PassingCache
from edgekit.exporters.rotary import RotaryLayout, RotarySource, find_layout, is_rotary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SURVEY = "edgekit-survey"
APPLY_ROTARY = "apply_rotary_pos_emb"
"""The function by which transformers' models turn query and key."""

_LENGTH = 9
# The operator turns query and key only of heads whose size is a multiple of this.
_ROTARY_HEAD_MULTIPLE = 16
# What attention functions are passed and what is known otherwise, or is for training.
_HARMLESS = {"dropout", "sliding_window", "is_causal", "position_ids", "cache_position", "use_cache", "return_dict"}
_HARMLESS |= {"output_attentions", "output_hidden_states", "cu_seq_lens_q", "cu_seq_lens_k", "output_router_logits"}
_HARMLESS |= {"max_length_q", "max_length_k", "logits_to_keep", "position_embeddings"}


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding that GroupQueryAttention can apply itself."""

    source: RotarySource
    layout: RotaryLayout


@dataclass(frozen=True)
class AttentionFacts:
    """What the attention of one layer computes."""

    heads: int
    key_value_heads: int
    head_size: int
    scale: float
    """What scores are multiplied with."""
    softcap: float
    """Scores s become softcap * tanh(s / softcap); 0: they stay."""
    window: int | None
    """Keys that a query sees, itself included; None: all before it."""
    rotary: Rotary | None
    """What turns query and key just before the attention; None: nothing, or something that stays explicit."""


@dataclass(frozen=True)
class Survey:
    """What a decoder's attentions compute."""

    layers: tuple[AttentionFacts, ...]
    """By the index under which each keeps its keys and values."""
    rotary_calls: tuple[Rotary | None, ...]
    """For every call that turns query and key, in order: what the attention does instead, or None: leave it."""
    sources: tuple[RotarySource, ...]
    """Every way that a rotary module is called."""


def survey_attention(model: PreTrainedModel, context_length: int) -> Survey:
    """Returns what the attentions of `model`, in float and evaluation mode, compute.

    Raises:
        UnsupportedError: there is no attention that the exporter sees, or one computes what the operator does not.
    """
    require_plain_decoder(model)
    recorder = _Recorder(context_length)
    before = model.config._attn_implementation
    ids = torch.arange(_LENGTH)[None] % int(model.config.vocab_size)
    with ExitStack() as stack:
        stack.enter_context(registered(SURVEY, recorder.attention, recorder.mask))
        stack.enter_context(replaced_rotary(model, recorder.applied))
        for module in model.modules():
            if is_rotary(module):
                handle = module.register_forward_hook(recorder.made_tables, with_kwargs=True)
                stack.callback(handle.remove)
        try:
            model.set_attn_implementation(SURVEY)
            with torch.no_grad():
                model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    past_key_values=recorder.cache,
                    use_cache=True,
                )
        finally:
            model.set_attn_implementation(before)
    return recorder.conclude(type(model).__name__)


def require_plain_decoder(model: PreTrainedModel) -> None:
    """Refuses what no operator here computes.

    Raises:
        UnsupportedError: mixture of experts, encoder-decoder, or attention beside the `AttentionInterface`.
    """
    name, config = type(model).__name__, model.config
    experts = [getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts")]
    if any(isinstance(count, int) and count > 1 for count in experts):
        raise UnsupportedError(f"onnx: {name} is a mixture of experts, which the exporter does not support.")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"onnx: {name} is an encoder-decoder; expected a decoder alone.")
    if not model._can_set_attn_implementation():
        raise UnsupportedError(
            f"onnx: the attention of {name} does not go through transformers' AttentionInterface (ALiBi, state space "
            "models and remote code do not); expected one that does."
        )


@contextmanager
def registered(name: str, attention: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Registers an attention function and a mask function with transformers inside the `with` block."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    try:
        yield
    finally:
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


@contextmanager
def replaced_rotary(model: nn.Module, replace: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Lets `replace(original, query, key, cos, sin, ...)` stand for the function that turns query and key."""
    namespaces = {sys.modules[type(module).__module__] for module in model.modules()}
    found = [(space, getattr(space, APPLY_ROTARY)) for space in namespaces if hasattr(space, APPLY_ROTARY)]
    try:
        for space, original in found:
            setattr(
                space, APPLY_ROTARY, lambda *args, _original=original, **kwargs: replace(_original, *args, **kwargs)
            )
        yield
    finally:
        for space, original in found:
            setattr(space, APPLY_ROTARY, original)


class _Recorder:
    """Takes notes while the model runs. Tensors are told apart by identity, so all are kept alive."""

    def __init__(self, context_length: int) -> None:
        self.cache = PassingCache()
        self._context_length = context_length
        self._masks: list[tuple[Tensor, int | None]] = []
        self._tables: list[tuple[Tensor, RotarySource]] = []
        self._sources: list[RotarySource] = []
        self._turned: list[tuple[Tensor, Tensor, Rotary | None]] = []
        self._fused: set[int] = set()
        self._layers: dict[int, AttentionFacts] = {}

    def mask(
        self, batch_size: int, q_length: int, kv_length: int, mask_function: Callable[..., Any], **_: Any
    ) -> Tensor:
        """Returns a mask that nothing computes with, and notes which keys `mask_function` lets a query see."""
        mask = torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool)
        self._masks.append((mask, read_window(mask_function, self._context_length)))
        return mask

    def made_tables(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """Notes the tables that a rotary module made."""
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            return
        rest = tuple(args[2:]) + tuple(value for key, value in kwargs.items() if key not in ("x", "position_ids"))
        source = RotarySource(module, rest)
        if source not in self._sources:
            self._sources.append(source)
        self._tables.append((outputs[0], source))

    def applied(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Turns query and key as the model does, and notes how."""
        query, key = original(*args, **kwargs)
        source = next((source for cos, source in self._tables if cos is args[2]), None)
        layout = None if source is None else find_layout(args[:2], (query, key), args[2], args[3])
        rotary = None if source is None or layout is None else Rotary(source, layout)
        self._turned.append((query, key, rotary))
        return query, key

    def attention(  # noqa: PLR0913 - the signature that transformers calls
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        """Notes what an attention is given; returns zeros (B, S, N, D).

        Raises:
            UnsupportedError: it asks for something that GroupQueryAttention does not compute.
        """
        name = type(module).__name__
        layer = self.cache.take(key, value)
        softcap = settings.pop("softcap", None)
        unknown = sorted(k for k, v in settings.items() if v is not None and k not in _HARMLESS)
        if unknown:
            raise UnsupportedError(
                f"onnx: {name} passes {', '.join(unknown)} to its attention, which is not supported."
            )
        if layer is None:
            raise UnsupportedError(
                f"onnx: {name} attends to keys that it does not keep itself, which is not supported."
            )
        if query.shape[-1] != value.shape[-1] or key.shape[-1] != value.shape[-1]:
            raise UnsupportedError(f"onnx: {name} has values of another size than its keys, which is not supported.")
        masks = [window for mask, window in self._masks if mask is attention_mask]
        if not masks:
            raise UnsupportedError(f"onnx: {name} masks its attention by itself (ALiBi, or a bias); not supported.")
        self._layers[layer] = AttentionFacts(
            heads=query.shape[1],
            key_value_heads=key.shape[1],
            head_size=query.shape[-1],
            scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
            softcap=float(softcap or 0.0),
            window=masks[0],
            rotary=self._rotary_of(query, key),
        )
        return torch.zeros_like(query).transpose(1, 2), None

    def _rotary_of(self, query: Tensor, key: Tensor) -> Rotary | None:
        if query.shape[-1] % _ROTARY_HEAD_MULTIPLE:
            return None
        for index, (turned_query, turned_key, rotary) in enumerate(self._turned):
            if turned_query is query and turned_key is key and rotary is not None:
                self._fused.add(index)
                return rotary
        return None

    def conclude(self, name: str) -> Survey:
        """Returns all notes.

        Raises:
            UnsupportedError: a layer has no attention, or one that was not seen.
        """
        if not self._layers or sorted(self._layers) != list(range(len(self._layers))):
            raise UnsupportedError(
                f"onnx: found attention in the layers {sorted(self._layers)} of {name}, expected it in every layer. "
                "Layers of another kind (state space, convolution) are not supported."
            )
        calls = [rotary if index in self._fused else None for index, (_, _, rotary) in enumerate(self._turned)]
        layers = tuple(self._layers[index] for index in range(len(self._layers)))
        return Survey(layers, tuple(calls), tuple(self._sources))


def read_window(mask_function: Callable[..., Any], context_length: int) -> int | None:
    """Returns how many keys a query sees, itself included, or None for all before it.

    Raises:
        UnsupportedError: it sees others.
    """
    keys = torch.arange(context_length)
    queries = torch.arange(context_length)[:: max(1, context_length // 16)]
    queries = torch.cat((queries, keys[-1:]))
    zero = torch.zeros((), dtype=torch.int64)
    seen = mask_function(zero, zero, queries[:, None], keys[None, :])
    seen = torch.as_tensor(seen).expand(len(queries), context_length)
    window = int(seen[-1].sum())
    distance = queries[:, None] - keys[None, :]
    if not torch.equal(seen, (distance >= 0) & (distance < window)):
        raise UnsupportedError(
            "onnx: found an attention mask that is neither causal nor a sliding window (chunks, documents, a prefix "
            "that sees itself); no operator computes it."
        )
    return None if window == context_length else window
