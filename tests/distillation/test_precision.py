"""bf16 is used where the hardware multiplies it, and nowhere else by itself."""

from pathlib import Path

import pytest
import torch

from edgekit.distillation.precision import autocast, has_bf16, uses_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_processor_has_bf16_when_it_says_so(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16(CPU) is expected
    assert uses_bf16("auto", CPU) is expected
    assert uses_bf16("bf16", CPU) is True
    assert uses_bf16("float32", CPU) is False


def test_this_processor_agrees_with_the_kernel():
    with Path("/proc/cpuinfo").open() as stream:
        flags = stream.read()
    assert has_bf16(CPU) == ("avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags)


def test_autocast_changes_products_only_where_asked():
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with autocast("bf16", CPU):
        assert (left @ right).dtype == torch.bfloat16
    with autocast("float32", CPU):
        assert (left @ right).dtype == torch.float32
