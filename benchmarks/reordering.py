"""Another order of a Llama's channels: the same function and weights, other neighbours.

Weights that were quantized in blocks once fit those blocks almost exactly; after this they are as hard to quantize as
any others, and a comparison of ways to do so is fair.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def reorder_channels(model: PreTrainedModel, seed: int) -> None:
    """Draws a new order for the hidden channels, the neurons and the value channels of a Llama, in place.

    The network computes the same; which weights are neighbours changes.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    hidden = torch.randperm(config.hidden_size, generator=generator)
    norms = [model.model.norm]
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data[:, hidden]
    head_size, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    for layer in model.model.layers:
        attention, feed_forward = layer.self_attn, layer.mlp
        neurons = torch.randperm(config.intermediate_size, generator=generator)
        heads = [
            torch.randperm(head_size, generator=generator) + head_size * head
            for head in range(config.num_key_value_heads)
        ]
        values = torch.cat(heads)
        # Each value head is read by several query heads, one after another.
        outputs = torch.cat([
            head % head_size + head_size * (groups * index + copy)
            for index, head in enumerate(heads)
            for copy in range(groups)
        ])  # fmt: skip
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, feed_forward.gate_proj):
            linear.weight.data = linear.weight.data[:, hidden]
        feed_forward.up_proj.weight.data = feed_forward.up_proj.weight.data[:, hidden]
        for linear in (feed_forward.gate_proj, feed_forward.up_proj):
            linear.weight.data = linear.weight.data[neurons]
        attention.v_proj.weight.data = attention.v_proj.weight.data[values]
        attention.o_proj.weight.data = attention.o_proj.weight.data[hidden][:, outputs]
        feed_forward.down_proj.weight.data = feed_forward.down_proj.weight.data[hidden][:, neurons]
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    for norm in norms:
        norm.weight.data = norm.weight.data[hidden]
