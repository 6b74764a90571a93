from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.attention_survey import read_window, survey_attention
from edgekit.exporters.rms_norm import find_rms_norm
from edgekit.exporters.rotary import find_layout, require_static, rotate
from tests.pico_decoders import decoder_config, pico_decoder


def turned(states: np.ndarray, angles: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """The same by complex numbers, in float64: (B, N, T, D) by (T, R / 2)."""
    width = 2 * angles.shape[-1]
    part = states[..., :width].astype(np.float64)
    half = width // 2
    first, second = (part[..., ::2], part[..., 1::2]) if interleaved else (part[..., :half], part[..., half:])
    result = (first + 1j * second) * np.exp(1j * angles)
    joined = np.stack((result.real, result.imag), -1).reshape(part.shape)
    if not interleaved:
        joined = np.concatenate((result.real, result.imag), -1)
    return np.concatenate((joined, states[..., width:]), -1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.booleans())
def test_rotation_is_that_of_complex_numbers(seed, width, interleaved):
    generator = np.random.default_rng(seed)
    states, angles = generator.standard_normal((1, 2, 5, 8)), generator.standard_normal((5, width // 2)) * 3
    cos, sin = (torch.from_numpy(table)[None] for table in (np.cos(angles), np.sin(angles)))
    found = rotate(torch.from_numpy(states), cos, sin, interleaved=interleaved)
    np.testing.assert_allclose(found.numpy(), turned(states, angles, interleaved=interleaved), atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_the_layout_is_found_from_what_a_model_did(interleaved, repeated):
    angles = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    wide = angles.repeat_interleave(2, -1) if repeated else torch.cat((angles, angles), -1)
    query, key = (torch.randn(1, heads, 6, 12, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2))
    after = [rotate(each, angles.cos(), angles.sin(), interleaved=interleaved) for each in (query, key)]
    layout = find_layout((query, key), after, wide.cos(), wide.sin())
    assert layout is not None
    assert (layout.interleaved, layout.repeated) == (interleaved, repeated)
    assert find_layout((query, key), [after[0], after[1] * 1.01], wide.cos(), wide.sin()) is None


@given(st.integers(2, 300), st.integers(1, 300))
def test_the_window_is_read_from_the_mask(context, window):
    found = read_window(lambda b, h, q, k: (k <= q) & (k > q - window), context)
    assert found == (window if window < context else None)


def test_other_masks_are_refused():
    for mask in (lambda b, h, q, k: (k <= q) & (q // 4 == k // 4), lambda b, h, q, k: (k <= q) | (k < 3)):
        with pytest.raises(UnsupportedError, match="neither causal nor a sliding window"):
            read_window(mask, 32)


class _Norm(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.eps = kind, 1e-4
        self.weight = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        if self.kind == "mean":
            x = x - x.mean(-1, keepdim=True)
        if self.kind == "sum":
            return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.eps) * self.weight
        eps = 2 * self.eps if self.kind == "another epsilon" else self.eps
        scale = 1 + self.weight if self.kind == "one more" else self.weight
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * scale


def test_norms_are_told_by_what_they_compute():
    plain, more = find_rms_norm(_Norm("plain")), find_rms_norm(_Norm("one more"))
    assert plain is not None
    assert more is not None
    assert torch.equal(plain.scale + 1, more.scale)
    assert plain.epsilon == 1e-4
    assert [find_rms_norm(_Norm(kind)) for kind in ("mean", "sum", "another epsilon")] == [None] * 3
    assert find_rms_norm(nn.LayerNorm(16)) is None


def test_the_survey_sees_windows_missing_rotary_and_scales():
    gemma = survey_attention(pico_decoder("gemma3_text", hidden_size=64, head_dim=16).model, 128)
    assert [layer.window for layer in gemma.layers] == [16, None, 16, None]
    assert len({layer.rotary for layer in gemma.layers}) == 2  # local and global layers turn by other angles
    smollm = survey_attention(pico_decoder("smollm3", hidden_size=64, head_dim=16).model, 128)
    assert [layer.rotary is not None for layer in smollm.layers] == [True, True, True, False]
    granite = survey_attention(pico_decoder("granite").model, 128)
    assert {layer.scale for layer in granite.layers} == {0.3}


def test_longrope_is_refused_where_its_factors_change():
    config = decoder_config("phi3", 300)
    factors = [1.0] * 4
    config.rope_parameters = {
        "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    require_static(config, 64)
    with pytest.raises(UnsupportedError, match="change at 64"):
        require_static(config, 65)
