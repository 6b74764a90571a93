"""Decides whether matrix products run in bf16, and makes the autocast context for it.

A processor without bf16 instructions emulates them, 30 times slower than float32: only the hardware's own word counts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from edgekit.distillation.config import Precision

# Names in `torch.cpu.get_capabilities()` of instructions that multiply bf16 matrices.
_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16", "sve_bf16")


def has_bf16(device: torch.device) -> bool:
    """Returns True when `device` multiplies bf16 matrices in hardware, not by emulation."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name, False)) for name in _CPU_BF16)
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Returns True when `precision` means bf16 on `device`."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which matrix products run in bf16 where `precision` says so; weights stay float32."""
    if uses_bf16(precision, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the dtype in which matrix products run: what autocast makes of their float32 factors."""
    return torch.bfloat16 if uses_bf16(precision, device) else torch.float32


def narrow_linears(module: nn.Module, precision: Precision, device: torch.device) -> None:
    """Keeps the weights of linears in the dtype of their products, in place: for modules that are never trained.

    Under `autocast` each pass rounds the same weights to the same numbers, so nothing changes but half of their memory
    and the time that it takes. Weights that another module has too, such as a token table that is the head, stay.
    """
    narrow = product_dtype(precision, device)
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    others = {
        id(parameter)
        for part in module.modules()
        if not isinstance(part, nn.Linear)
        for parameter in part.parameters(recurse=False)
    }
    for linear in linears:
        weight = linear.weight
        if type(weight) is nn.Parameter and weight.dtype == torch.float32 and id(weight) not in others:
            linear.weight = nn.Parameter(weight.detach().to(narrow), requires_grad=False)
