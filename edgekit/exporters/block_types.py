"""Which GGUF block holds codes of which scheme. It reads the scheme alone, so that a recipe is judged without torch."""

from __future__ import annotations

from typing import Literal, Protocol

from edgekit.errors import UnsupportedError

BLOCK = 32
"""Weights of a block."""
BlockType = Literal["Q8_0", "Q4_0", "Q4_1"]
_TYPES: dict[tuple[int, bool], BlockType] = {(8, True): "Q8_0", (4, True): "Q4_0", (4, False): "Q4_1"}


class Codes(Protocol):
    """What is asked of a scheme; `models.codes.Scheme` fits."""

    @property
    def bits(self) -> int:
        """Bits a code."""

    @property
    def group_size(self) -> int | None:
        """Input channels that share a scale; None: one scale a row."""

    @property
    def symmetric(self) -> bool:
        """Signed codes around zero, or unsigned ones with a zero point."""


def block_type(scheme: Codes, columns: int) -> BlockType:
    """Returns the block that holds codes of `scheme` in rows of `columns` weights exactly.

    Raises:
        UnsupportedError: there is none.
    """
    kind = _TYPES.get((scheme.bits, scheme.symmetric))
    described = f"{scheme.bits}-bit {'symmetric' if scheme.symmetric else 'asymmetric'} codes"
    if kind is None:
        raise UnsupportedError(
            f"gguf: found {described}, for which it has no block; expected 8-bit symmetric codes (Q8_0), 4-bit "
            "symmetric ones (Q4_0) or 4-bit asymmetric ones (Q4_1)."
        )
    if columns % BLOCK:
        raise UnsupportedError(
            f"gguf: found {described} in rows of {columns} weights; {kind} blocks need a multiple of {BLOCK}. Leave "
            "the module float, or quantize it for another format."
        )
    if scheme.group_size is not None and scheme.group_size % BLOCK:
        raise UnsupportedError(
            f"gguf: found {described} in groups of {scheme.group_size}; expected groups of {BLOCK}, 64 or 128, or one "
            f"scale a row: a {kind} block of {BLOCK} weights has one scale."
        )
    return kind
