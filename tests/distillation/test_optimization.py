"""The learning rate of each step, and which weights decay."""

import math

import pytest
import torch

from edgekit.distillation.config import TrainingConfig
from edgekit.distillation.optimization import learning_rate, make_optimizer


def rates(total=10, **settings):
    config = TrainingConfig(learning_rate=1.0, **settings)
    return [learning_rate(config, step, total) for step in range(total)]


def test_linear_rises_then_falls_to_zero_just_after_the_last_step():
    assert rates(warmup=0.2) == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_cosine_is_half_way_down_in_the_middle():
    found = rates(warmup=0.0, schedule="cosine")
    assert found[0] == 1.0
    assert found[5] == pytest.approx(0.5)
    assert found[9] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


def test_constant_stays():
    assert rates(warmup=0.1, schedule="constant") == [1.0] * 10


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_rate_is_positive_and_at_most_the_highest(schedule, warmup, total):
    found = rates(total, warmup=warmup, schedule=schedule)
    assert all(0 < rate <= 1.0 for rate in found)


def test_biases_and_norms_do_not_decay_and_frozen_weights_are_left_out():
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    module[0].weight.requires_grad_(False)
    optimizer = make_optimizer(module, TrainingConfig(weight_decay=0.3), torch.device("cpu"))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert decay == {
        id(module[1].weight): 0.3,
        id(module[1].bias): 0.0,
        id(module[2].weight): 0.0,
        id(module[2].bias): 0.0,
    }
