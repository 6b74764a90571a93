"""Attention by blocks against an independent one in float64, and in the models that use it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.distillation import attention
from edgekit.distillation.attention import NAME, View, attend, bf16_attention
from edgekit.distillation.precision import autocast, narrow_linears
from tests.pico import pico_loaded
from tests.pico_decoders import pico_decoder

CPU = torch.device("cpu")


def dense(query, key, value, view):
    """The definition: all scores at once, every key head repeated for its query heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) * view.scale
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if view.causal:
        seen = seen.tril()
    elif view.mask is not None and view.mask.dtype == torch.bool:
        seen = view.mask
    elif view.mask is not None:
        scores = scores + view.mask
    return torch.einsum("bhts,bhsd->bhtd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


def draw(generator, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    length=st.integers(2, 40),
    batch=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    block=st.sampled_from([1, 7, 64]),
    scores_bytes=st.sampled_from([1, 2000, 1 << 22]),
    sort=st.sampled_from(["causal", "none", "bool", "bool of one", "float"]),
)
def test_values_and_gradients_are_those_of_the_definition(seed, length, batch, heads, block, scores_bytes, sort):
    generator = torch.Generator().manual_seed(seed)
    query = draw(generator, batch, heads[0], length, 8)
    key, value = draw(generator, batch, heads[1], length, 8), draw(generator, batch, heads[1], length, 5)
    mask = None
    if sort in ("bool", "bool of one", "float"):
        shape = (1 if sort == "bool of one" else batch, 1, length, length)
        mask = (torch.rand(shape, generator=generator) < 0.5) | torch.eye(length, dtype=torch.bool)
        mask = torch.where(mask, 0.0, -1e4) if sort == "float" else mask
    view = View(mask, 0.3, sort == "causal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK", block)
        patch.setattr(attention, "_SCORES_BYTES", scores_bytes)
        found = attend(query, key, value, view)
        outer = torch.randn(found.shape, dtype=torch.float64, generator=generator)
        gradients = torch.autograd.grad(found, (query, key, value), outer)
    expected = dense(query, key, value, view)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for own, right in zip(gradients, torch.autograd.grad(expected, (query, key, value), outer), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-9)


def test_one_query_that_sees_two_keys_by_hand():
    key = torch.tensor([[[[0.0], [1.0]]]], dtype=torch.float64)
    value = torch.tensor([[[[10.0], [20.0]]]], dtype=torch.float64)
    found = attend(torch.ones_like(key) * 2, key, value, View(None, 0.5, True))
    share = torch.tensor(1.0, dtype=torch.float64).exp()  # e^(0.5 * 2 * 1) against e^0
    torch.testing.assert_close(found[0, 0, :, 0], torch.stack([value[0, 0, 0, 0], (10 + 20 * share) / (1 + share)]))


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "phi3", "opt", "granite"])
def test_a_decoder_gives_its_own_logits_and_gradients_to_the_rounding_of_bf16(architecture):
    model = pico_decoder(architecture, layers=2).model
    ids = torch.arange(5, 45).view(2, 20)
    positions = torch.cat([torch.arange(12), torch.arange(8)]).expand(2, -1)  # two documents in a row

    def run():
        model.zero_grad()
        with autocast("bf16", CPU):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        logits.logsumexp(-1).sum().backward()
        return logits.detach(), model.get_input_embeddings().weight.grad.clone()

    exact = model(input_ids=ids, position_ids=positions, use_cache=False).logits.detach()
    plain = run()
    with bf16_attention(model, "bf16", CPU):
        assert model.config._attn_implementation == NAME
        blocked = run()
    assert model.config._attn_implementation == "sdpa"
    error, usual = ((logits - exact).abs().max() for logits in (blocked[0], plain[0]))
    assert error <= 2 * usual
    assert torch.nn.functional.cosine_similarity(blocked[1].flatten(), plain[1].flatten(), dim=0) > 0.999


def test_padded_rows_of_an_encoder_give_what_torch_gives():
    model = pico_loaded(layers=2).model.eval()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    inputs = {"input_ids": torch.arange(5, 23).view(2, 9), "attention_mask": mask}
    with torch.no_grad(), autocast("bf16", CPU):
        plain = model(**inputs).logits
        with bf16_attention(model, "bf16", CPU):
            blocked = model(**inputs).logits
    torch.testing.assert_close(blocked, plain, rtol=0.02, atol=0.02)


def test_float32_and_other_devices_keep_torchs_attention():
    model = pico_decoder(layers=1).model
    for precision, device in (("float32", CPU), ("bf16", torch.device("cuda"))):
        with bf16_attention(model, precision, device):
            assert model.config._attn_implementation == "sdpa"


def test_linears_in_bf16_give_what_autocast_gives():
    model = pico_decoder(layers=2).model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), autocast("bf16", CPU):
        before = model(input_ids=ids).logits
        narrow_linears(model.base_model, "bf16", CPU)
        after = model(input_ids=ids).logits
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32
    assert torch.equal(before, after)
