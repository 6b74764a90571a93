"""Decides whether matrix products run in bf16, and makes the autocast context for it.

A processor without bf16 instructions emulates them, 30 times slower than float32: only the hardware's own word counts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

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
