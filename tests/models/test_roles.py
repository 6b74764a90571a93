import pytest
from torch import nn

from edgekit.models.roles import attention_role, feed_forward_role


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("self.query", "query"),
        ("q_lin", "query"),
        ("attn.k", "key"),
        ("value_proj", "value"),
        ("self_attn.v_proj", "value"),
        ("Wqkv", "query_key_value"),
        ("query_key_value", "query_key_value"),
        ("c_attn", "query_key_value"),
        ("in_proj", "query_key_value"),
        ("qkv_proj", "query_key_value"),
        ("output.dense", "attention_output"),
        ("out_lin", "attention_output"),
        ("o_proj", "attention_output"),
        ("Wo", "attention_output"),
        ("c_proj", "attention_output"),
        ("pos_key_proj", "attention_other"),
        ("pos_q_proj", "attention_other"),
        ("conv_kernel_layer", "attention_other"),
    ],
)
def test_the_name_tells_the_part_in_attention(name: str, role: str) -> None:
    assert attention_role(name) == role


@pytest.mark.parametrize(
    ("name", "shape", "last", "role"),
    [
        ("intermediate.dense", (8, 32), False, "feed_forward_up"),
        ("output.dense", (32, 8), True, "feed_forward_down"),
        ("lin1", (8, 8), False, "feed_forward_up"),
        ("lin2", (8, 8), True, "feed_forward_down"),
        ("mlp.gate_proj", (8, 32), False, "feed_forward_gate"),
        ("mlp.gate_up_proj", (8, 64), False, "feed_forward_up"),
        ("mlp.gate", (8, 4), False, "feed_forward_other"),
    ],
)
def test_the_shape_tells_the_part_in_feed_forward(name: str, shape: tuple[int, int], last: bool, role: str) -> None:
    assert feed_forward_role(name, nn.Linear(*shape), last=last) == role
