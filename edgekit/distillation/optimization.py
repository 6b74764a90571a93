"""AdamW with its parameter groups, and the learning rate of each step as a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgekit.distillation.config import TrainingConfig


def make_optimizer(module: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Returns AdamW over the trainable weights of `module`; vectors (biases and norms) are not decayed."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=fused)


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """Returns the learning rate of step `step`, counted from 0, of `total`.

    It rises linearly over `warmup * total` steps, then falls as the schedule says, reaching 0 just after the last.
    """
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    share = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return config.learning_rate * share[config.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
