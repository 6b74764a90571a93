"""Weights as llama.cpp's own blocks would hold them, by the `gguf` package's reference code."""

from __future__ import annotations

import gguf
import torch
from torch import Tensor


def llama_cpp_weight(weight: Tensor, block: str) -> tuple[Tensor, int]:
    """Returns `weight` (float32) rounded to blocks of 32 of a type such as `Q4_0`, and the bytes that they take."""
    kind = gguf.GGMLQuantizationType[block]
    data = gguf.quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(data, kind)), data.nbytes
