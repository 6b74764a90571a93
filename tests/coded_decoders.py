"""Puts codes into pico decoders, for the tests of formats that store them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.models.quantized import QuantizedLinear, QuantizedTensor, Scheme, empty_like, replace_module
from edgekit.models.source import LoadedModel
from edgekit.quantization.round_to_nearest import quantize_tensor


def exact_minimum_codes(weight: Tensor, group_size: int | None = 32) -> QuantizedTensor:
    """Returns 4-bit asymmetric codes whose `zero_point * scale` is a float16: scales of 7 significant bits."""
    scheme = Scheme(bits=4, group_size=group_size, symmetric=False, activations="float")
    rows, columns = weight.shape
    size = group_size or columns
    groups = weight.detach().float().reshape(rows, -1, size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    mantissa, exponent = torch.frexp(((high - low) / 15).clamp(min=2**-12))
    scales = torch.ldexp(torch.ceil(mantissa * 128) / 128, exponent).half()
    zeros = torch.round(-low / scales.float()).clamp(0, 15)
    codes = torch.round(groups / scales.float()[..., None]) + zeros[..., None]
    codes = codes.clamp(0, 15).to(torch.uint8).reshape(rows, columns)
    return QuantizedTensor(codes, scales, zeros.to(torch.uint8), scheme)


def code_linears(loaded: LoadedModel, scheme: Scheme) -> None:
    """Replaces every linear in the layers by a quantized one, in place; the head stays float."""
    head = loaded.model.get_output_embeddings()
    for name, module in list(loaded.model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            weight = (
                quantize_tensor(module.weight, scheme)
                if scheme.symmetric
                else exact_minimum_codes(module.weight, scheme.group_size)
            )
            coded = empty_like(module, weight.scheme, name)
            coded.set_weight(weight)
            if isinstance(coded, QuantizedLinear) and module.bias is not None:
                coded.bias = module.bias.detach().clone()
            replace_module(loaded.model, module, coded)
