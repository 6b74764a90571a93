"""AWQ: scales by hand, the error against the inputs themselves, and folds that change no function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.models.codes import Scheme
from edgekit.quantization.awq import AwqConfig, channel_scales, search_scaling
from edgekit.quantization.folding import divide_norm, divide_rows, scale_columns
from edgekit.quantization.round_to_nearest import quantize_tensor

SCHEME = Scheme(bits=3, group_size=16, activations="float")


def test_channel_scales_by_hand():
    # magnitudes 1 and 16, alpha 0.5: 1 and 4, over sqrt(4 * 1)
    assert channel_scales(torch.tensor([1.0, 16.0]), 0.5).tolist() == pytest.approx([0.5, 2.0])
    assert channel_scales(torch.tensor([1.0, 16.0]), 0.0).tolist() == [1.0, 1.0]


def salient() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs of which a few channels are far larger than the others."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 64, generator=generator)
    inputs[:, [3, 20, 41]] *= 20
    return torch.randn(96, 64, generator=generator), inputs


def test_the_errors_of_the_search_are_those_of_the_products():
    weight, inputs = salient()
    found = search_scaling([(weight, SCHEME)], (inputs.T @ inputs).double(), inputs.abs().mean(dim=0))
    importance = (inputs.T @ inputs).double().diagonal()

    def error(scales):
        coded = quantize_tensor(weight * scales, SCHEME, importance=importance / scales.double().square())
        wanted = inputs.double() @ weight.double().T
        return float(((inputs / scales).double() @ coded.dequantize().double().T - wanted).square().sum())

    unit = float(importance.mean())
    assert found.error * unit == pytest.approx(error(found.scales), rel=1e-3)
    assert found.error_before * unit == pytest.approx(error(torch.ones(64)), rel=1e-3)


def test_salient_channels_are_scaled_up_and_that_pays():
    weight, inputs = salient()
    found = search_scaling([(weight, SCHEME)], (inputs.T @ inputs).double(), inputs.abs().mean(dim=0), AwqConfig(20))
    assert found.alpha > 0
    assert found.scales[[3, 20, 41]].min() > found.scales[[0, 1, 2]].max()
    assert found.error < 0.8 * found.error_before


class ShiftedNorm(nn.Module):
    """Gemma's kind: multiplies by one plus its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.5, 8))

    def forward(self, x):
        return x / x.square().mean(dim=-1, keepdim=True).sqrt() * (1 + self.weight)


class SquaredNorm(ShiftedNorm):
    def forward(self, x):
        return x * self.weight.square()


def layer_norm() -> nn.Module:
    norm = nn.LayerNorm(8)
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(2))
    return norm


@pytest.mark.parametrize("make", [layer_norm, lambda: nn.RMSNorm(8), ShiftedNorm])
def test_a_norm_and_the_linear_behind_it_keep_their_function(make):
    norm, linear, scales = make(), nn.Linear(8, 5), torch.linspace(0.2, 4.0, 8)
    inputs = torch.randn(7, 8, generator=torch.Generator().manual_seed(3))
    before = linear(norm(inputs))
    divide_norm(norm, scales, "norm")
    scale_columns([linear], scales)
    torch.testing.assert_close(linear(norm(inputs)), before, rtol=1e-5, atol=1e-5)


def test_a_norm_of_another_kind_is_refused_and_left_as_it_was():
    norm = SquaredNorm()
    kept = norm.weight.detach().clone()
    with pytest.raises(UnsupportedError, match=r"module 'layers\.0\.norm': found SquaredNorm"):
        divide_norm(norm, torch.linspace(0.2, 4.0, 8), "layers.0.norm")
    assert torch.equal(norm.weight, kept)


def test_rows_of_one_linear_and_columns_of_the_next():
    up, down, scales = nn.Linear(4, 6), nn.Linear(6, 3), torch.linspace(0.5, 3.0, 6)
    inputs, gate = torch.randn(5, 4), torch.rand(5, 6)
    before = down(up(inputs) * gate)
    divide_rows(up, scales)
    scale_columns([down], scales)
    torch.testing.assert_close(down(up(inputs) * gate), before, rtol=1e-5, atol=1e-5)
