"""Attention for training in bf16 on a processor: products over blocks of queries, nothing of them kept.

torch's fused attention multiplies through a library that has no fast bf16 kernel for every processor; its ordinary
products have. So scores are made block by block with those, and made again in the backward pass (as in Dao et al.,
"FlashAttention", arXiv:2205.14135, section 3.1): memory grows with the length, not with its square.
It knows tensors and transformers' attention interface; not which models are trained, or on what.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from edgekit.distillation.config import Precision
from edgekit.distillation.precision import uses_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "edgekit_bf16"
"""What transformers calls this attention."""
_BLOCK = 64  # queries at once: few, so that a causal block skips the keys after it
_OTHERS = ("softcap", "position_bias", "cache", "s_aux")  # what transformers may ask for besides
_SCORES_BYTES = 1 << 22  # of one block of scores: small enough for the cache, and for memory that is used again


class View(NamedTuple):
    """Which keys a query sees, and how."""

    mask: Tensor | None
    """(B or 1, 1, T, S): bool, True where a query sees a key, or floats that are added to scores; None: every key."""
    scale: float
    """What the scores are multiplied by."""
    causal: bool
    """A query sees no key after itself; T is S, and there is no mask."""


class _Block(NamedTuple):
    """Which sequences and queries are done together, and how many keys they see."""

    sequences: slice
    queries: slice
    keys: int


@contextmanager
def bf16_attention(model: PreTrainedModel, precision: Precision, device: torch.device) -> Iterator[None]:
    """Lets `model` use this attention while the block runs, where it would use torch's in bf16 on a processor."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    fits = device.type == "cpu" and uses_bf16(precision, device) and model._can_set_attn_implementation()
    before = model.config._attn_implementation
    with ExitStack() as stack:
        if fits and before == "sdpa":

            def forward(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
                if not _is_plain((query, key, value), mask, given):
                    return sdpa_attention_forward(module, query, key, value, mask, **given)
                is_causal, scale = given.get("is_causal"), given.get("scaling")
                is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
                view = View(
                    mask, query.shape[-1] ** -0.5 if scale is None else float(scale), mask is None and bool(is_causal)
                )
                query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
                return attend(query, key, value, view).transpose(1, 2).contiguous(), None

            AttentionInterface.register(NAME, forward)
            AttentionMaskInterface.register(NAME, sdpa_mask)
            model.set_attn_implementation(NAME)
            stack.callback(model.set_attn_implementation, before)
        yield


def attend(query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
    """Returns `softmax(scale * query key^T + mask) value`, (B, H, T, D_value), in the dtype of its products.

    Args:
        query: (B, H, T, D), bf16 or any other float dtype.
        key: (B, K, S, D); K divides H: each key head serves H / K query heads.
        value: (B, K, S, D_value).
        view: what each query sees.
    """
    found: Tensor = _Attention.apply(query, key, value, view)  # type: ignore[no-untyped-call]
    return found


def _is_plain(tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, given: dict[str, Any]) -> bool:
    """True where `attend` computes what was asked for, and faster."""
    query, key, _ = tensors
    narrow = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    narrow = narrow and torch.get_autocast_dtype("cpu") == torch.bfloat16
    shapes = query.shape[1] % key.shape[1] == 0 and query.shape[2] == key.shape[2] > 1
    shapes = shapes and (mask is None or (mask.shape[1] == 1 and mask.shape[2:] == (query.shape[2], key.shape[2])))
    return narrow and shapes and given.get("dropout", 0.0) == 0 and all(given.get(name) is None for name in _OTHERS)


def _blocks(query: Tensor, keys: int, causal: bool) -> list[_Block]:
    """Returns the blocks whose scores are made at once."""
    batch, heads, length, _ = query.shape
    block = min(_BLOCK, length)
    together = max(1, _SCORES_BYTES // (heads * block * keys * query.element_size()))
    return [
        _Block(slice(first, first + together), slice(start, stop), stop if causal else keys)
        for first in range(0, batch, together)
        for start, stop in ((start, min(start + block, length)) for start in range(0, length, block))
    ]


def _grouped(tensor: Tensor, block: _Block, key_heads: int) -> Tensor:
    """Returns the queries of a block, (b, H, T, D), with those that share keys side by side: (b, K, H / K * t, D)."""
    taken = tensor[block.sequences, :, block.queries]
    return taken.reshape(len(taken), key_heads, -1, taken.shape[-1])


def _weights(queries: Tensor, keys: Tensor, view: View, block: _Block) -> Tensor:
    """Returns the softmax of the scores of a block, (b, K, H / K * t, s); `queries` are scaled already."""
    scores = queries @ keys.transpose(-1, -2)
    length = block.queries.stop - block.queries.start
    shaped = scores.view(*scores.shape[:2], -1, length, block.keys)  # (b, K, H / K, t, s)
    least = torch.finfo(scores.dtype).min
    if view.causal:
        hidden = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        shaped[..., block.queries.start :].masked_fill_(hidden, least)
    elif view.mask is not None:
        sequences = block.sequences if len(view.mask) > 1 else slice(None)
        seen = view.mask[sequences, :, block.queries, None].transpose(2, 3)  # (b or 1, 1, 1, t, s)
        if seen.dtype == torch.bool:
            shaped.masked_fill_(~seen, least)
        else:
            shaped.add_(seen.to(scores.dtype))
    return torch.softmax(scores, dim=-1)


class _Attention(torch.autograd.Function):
    """Attention that keeps its inputs alone and makes the weights again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        """Returns the attended values, (B, H, T, D_value)."""
        ctx.save_for_backward(query, key, value)
        ctx.view = view
        found = query.new_empty(*query.shape[:3], value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            for block in _blocks(query, key.shape[2], view.causal):
                queries = _grouped(query, block, key.shape[1]) * view.scale
                keys, values = (tensor[block.sequences, :, : block.keys] for tensor in (key, value))
                attended = _weights(queries, keys, view, block) @ values
                place = found[block.sequences, :, block.queries]
                place.copy_(attended.view(place.shape))
        return found

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Returns the gradients of query, key and value."""
        (query, key, value), view = ctx.saved_tensors, ctx.view
        wide = torch.promote_types(query.dtype, torch.float32)  # a sum over blocks in bf16 would lose later ones
        query_gradient = torch.empty_like(query)
        key_gradient, value_gradient = (torch.zeros_like(tensor, dtype=wide) for tensor in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            for block in _blocks(query, key.shape[2], view.causal):
                queries = _grouped(query, block, key.shape[1]) * view.scale
                keys, values = (tensor[block.sequences, :, : block.keys] for tensor in (key, value))
                weights = _weights(queries, keys, view, block)
                outer = _grouped(outputs[0].to(query.dtype), block, key.shape[1])
                value_gradient[block.sequences, :, : block.keys] += weights.transpose(-1, -2) @ outer
                slope = outer @ values.transpose(-1, -2)
                slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype)
                key_gradient[block.sequences, :, : block.keys] += slope.transpose(-1, -2) @ queries
                place = query_gradient[block.sequences, :, block.queries]
                place.copy_(((slope @ keys) * view.scale).view(place.shape))
        return query_gradient, key_gradient.to(key.dtype), value_gradient.to(value.dtype), None
