"""What the format `executorch` needs: which codes it can hold, and what writes it. Recipes are checked with it."""

from __future__ import annotations

from typing import Protocol

from edgekit.errors import EnvironmentLacksError, UnsupportedError
from edgekit.exporters import block_types
from edgekit.extras import install_command

BLOCK = 32
"""Groups of 4-bit codes are multiples of it."""


class Codes(block_types.Codes, Protocol):
    """What is asked of a scheme; `models.codes.Scheme` fits."""

    @property
    def activations(self) -> str:
        """`dynamic-int8` where a linear's input is rounded; a table's says nothing."""

    @property
    def narrow_scales(self) -> bool:
        """Whether scales are positive, with the significant bits of a bfloat16."""


def require_kernel(codes: Codes, *, is_table: bool) -> None:
    """Does nothing where ExecuTorch has a kernel that reads such codes, of a linear or of a table.

    XNNPACK's linears on codes round their input. The kernel for groups of 4-bit codes holds positive bfloat16 scales.

    Raises:
        UnsupportedError: it has none.
    """
    is_whole = codes.bits == 8 and codes.group_size is None and codes.symmetric
    if is_table and is_whole:
        return
    in_blocks = codes.bits == 4 and codes.symmetric and (codes.group_size or 1) % BLOCK == 0
    if not is_table and codes.activations == "dynamic-int8" and (is_whole or (in_blocks and codes.narrow_scales)):
        return
    kind = "symmetric" if codes.symmetric else "asymmetric"
    groups = "" if codes.group_size is None else f" in groups of {codes.group_size}"
    wide = " with wide scales" if in_blocks and not codes.narrow_scales else ""
    floats = " with float activations" if not is_table and codes.activations == "float" else ""
    others = (
        ""
        if is_table
        else f", or of 4 bits in groups of {BLOCK}, 64 or 128 with narrow_scales = true, and dynamic-int8 activations"
    )
    raise UnsupportedError(
        f"executorch has no kernel for {codes.bits}-bit {kind} codes{groups}{wide or floats}; expected symmetric ones "
        f"of 8 bits with one scale a row{others}. Quantize otherwise, or leave it float."
    )


def require_converter() -> None:
    """Does nothing where ExecuTorch is installed.

    Raises:
        EnvironmentLacksError: it is not; says how to install it.
    """
    from importlib.util import find_spec

    if find_spec("executorch") is None:
        raise EnvironmentLacksError(
            f"executorch: the package 'executorch' is not installed. Install it: {install_command('executorch')}"
        )
