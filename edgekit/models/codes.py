"""Weights as integer codes, and how codes are packed into bytes.

It knows nothing of modules or files; which codes stand for a weight is decided in `quantization/`.

Layout: a code matrix is `(out, in)`, one scale (and zero point) for each output channel or for each group of
`group_size` neighbours along `in` (the last group is short when `group_size` does not divide `in`).
A weight is `(code - zero_point) * scale`; a symmetric code is signed and has no zero point.

Packed, the codes of a row are one stream of bits, the lowest bit first: code i takes the bits `bits * i` to
`bits * i + bits - 1`, and bit j of the stream is bit `j % 8` of byte `j // 8`. So a byte holds two 4-bit or four
2-bit codes, the first one low, and three bytes hold eight 3-bit codes; only the last byte of a row may have bits to
spare, which are zero. Signed codes are stored plus `2 ** (bits - 1)`. Zero points are packed likewise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import UnsupportedError

Activations = Literal["float", "dynamic-int8"]

# Eight codes of any width fill whole bytes.
_PACKED_TOGETHER = 8


@dataclass(frozen=True)
class Scheme:
    """How one weight matrix is coded and with what its kernel multiplies it.

    `activations="dynamic-int8"` rounds the input to 8 bits when it arrives: with one scale and zero point for the
    whole tensor where the weight is coded per channel (ONNX DynamicQuantizeLinear), with one scale for each
    `group_size` neighbours where it is coded group-wise (MatMulNBits at accuracy level 4).

    Raises:
        UnsupportedError: a value that no kernel has.
    """

    bits: int = 8
    """Bits a code: 8, 4, 3 or 2."""
    group_size: int | None = None
    """Input channels that share a scale; None: one scale for each output channel."""
    symmetric: bool = True
    """True: signed codes around zero. False: unsigned codes with a zero point."""
    activations: Activations = "dynamic-int8"
    """What the weight is multiplied with."""
    reduce_range: bool = False
    """Keep neighbouring codes small enough together that x86 processors without VNNI do not saturate."""
    narrow_scales: bool = False
    """Keep scales positive and to the 8 significant bits of a bfloat16, as XNNPACK's kernel for 4-bit groups does."""

    def __post_init__(self) -> None:
        """Refuses values that no kernel has."""
        if self.bits not in (8, 4, 3, 2):
            raise UnsupportedError(f"bits: found {self.bits}, expected 8, 4, 3 or 2.")
        if self.group_size is not None and self.group_size < 1:
            raise UnsupportedError(f"group_size: found {self.group_size}, expected at least 1, or none.")
        if self.activations not in ("float", "dynamic-int8"):
            raise UnsupportedError(f"activations: found '{self.activations}', expected 'float' or 'dynamic-int8'.")
        if self.reduce_range and (self.bits != 8 or not self.symmetric or self.group_size is not None):
            raise UnsupportedError("reduce_range: needs symmetric 8-bit codes with one scale for each output channel.")
        if self.narrow_scales and (self.bits != 4 or not self.symmetric or self.group_size is None):
            raise UnsupportedError("narrow_scales: needs symmetric 4-bit codes in groups.")

    @property
    def code_min(self) -> int:
        """The lowest code in use.

        Symmetric 8-bit codes leave -128 out, so that their range is symmetric. Fewer bits use every code, -8 to 7 for
        example, and their scale may be negative: one code in 16 is worth more than an even range, let alone one in 4.
        """
        if not self.symmetric:
            return 0
        return -self.code_max if self.bits == 8 else -self.code_max - 1

    @property
    def code_max(self) -> int:
        """The highest code in use."""
        return (1 << (self.bits - self.symmetric)) - 1

    @property
    def middle(self) -> int:
        """What is added to a code to store it without a sign."""
        return 1 << (self.bits - 1) if self.symmetric else 0

    @property
    def code_dtype(self) -> torch.dtype:
        """Type of an unpacked code."""
        return torch.int8 if self.symmetric else torch.uint8

    def groups(self, columns: int) -> int:
        """Returns the number of scales in a row of `columns` weights."""
        return 1 if self.group_size is None else -(-columns // self.group_size)

    def same_codes(self, other: Scheme) -> bool:
        """Returns whether both code a weight alike, whatever it is multiplied with."""
        return self == replace(other, activations=self.activations)


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight matrix as codes: exactly what is deployed."""

    codes: Tensor
    """`(out, in)`, int8 when symmetric and uint8 otherwise, one code a byte whatever the bits."""
    scales: Tensor
    """`(out, groups)`, float16; negative where that uses the range of symmetric codes better."""
    zero_points: Tensor | None
    """`(out, groups)`, uint8; None when symmetric. `zero_point * scale` is a float16 value up to 4 bits."""
    scheme: Scheme

    @property
    def packed_bytes(self) -> int:
        """Size of codes, scales and zero points as they are stored, in bytes."""
        rows, columns = self.codes.shape
        groups = self.scales.shape[1]
        row_bytes = packed_width(columns, self.scheme.bits) + 2 * groups
        if self.zero_points is not None:
            row_bytes += packed_width(groups, self.scheme.bits)
        return int(rows * row_bytes)

    def centered(self) -> Tensor:
        """Returns `code - zero_point` as `(out, in)` float32 integers."""
        codes = self.codes.float()
        return codes if self.zero_points is None else codes - self._spread(self.zero_points.float())

    def dequantize(self) -> Tensor:
        """Returns the weights, `(out, in)` float32; exact, for a code times a float16 fits into 24 bits."""
        return self.centered() * self._spread(self.scales.float())

    def _spread(self, values: Tensor) -> Tensor:
        """Repeats `(out, groups)` so that it broadcasts over `(out, in)`."""
        if self.scheme.group_size is None:
            return values
        return values.repeat_interleave(self.scheme.group_size, dim=1)[:, : self.codes.shape[1]]


def packed_width(columns: int, bits: int) -> int:
    """Returns the bytes that `columns` codes of `bits` bits take."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Returns unsigned codes `(..., columns)` below `2 ** bits` as uint8 `(..., packed_width)`."""
    if bits == 8:
        return codes.to(torch.uint8)
    columns = codes.shape[-1]
    groups = F.pad(codes.to(torch.int64), (0, -columns % _PACKED_TOGETHER)).unflatten(-1, (-1, _PACKED_TOGETHER))
    words = (groups << (bits * torch.arange(_PACKED_TOGETHER, device=codes.device))).sum(dim=-1, keepdim=True)
    parts = (words >> (8 * torch.arange(bits, device=codes.device))) & 255
    packed: Tensor = parts.to(torch.uint8).flatten(-2)[..., : packed_width(columns, bits)]
    return packed.contiguous()


def unpack(packed: Tensor, columns: int, bits: int) -> Tensor:
    """Returns the unsigned codes `(..., columns)`, uint8, of `pack`."""
    if bits == 8:
        return packed
    if bits in (4, 2):  # a code lies within one byte
        shifts = bits * torch.arange(8 // bits, dtype=torch.uint8, device=packed.device)
        codes: Tensor = ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :columns]
        return codes
    parts = F.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits)).to(torch.int32)
    words = (parts << (8 * torch.arange(bits, dtype=torch.int32, device=packed.device))).sum(
        dim=-1, keepdim=True, dtype=torch.int32
    )
    shifts = bits * torch.arange(_PACKED_TOGETHER, dtype=torch.int32, device=packed.device)
    triples: Tensor = ((words >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2)[..., :columns]
    return triples
