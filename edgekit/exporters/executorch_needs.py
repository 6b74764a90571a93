"""What the format `executorch` needs: which codes it can hold, and what writes it. Recipes are checked with it."""

from __future__ import annotations

from typing import Protocol

from edgekit.errors import EnvironmentLacksError, UnsupportedError
from edgekit.exporters import block_types
from edgekit.extras import install_command


class Codes(block_types.Codes, Protocol):
    """What is asked of a scheme; `models.codes.Scheme` fits."""

    @property
    def activations(self) -> str:
        """`dynamic-int8` where a linear's input is rounded; a table's says nothing."""


def require_kernel(codes: Codes, *, is_table: bool) -> None:
    """Does nothing where ExecuTorch has a kernel that reads such codes, of a linear or of a table.

    XNNPACK's linears on codes round their input; their kernels for groups of 4-bit codes hold scales as bfloat16, which
    would change a float16 scale.

    Raises:
        UnsupportedError: it has none.
    """
    is_whole = codes.bits == 8 and codes.group_size is None and codes.symmetric
    if is_whole and (is_table or codes.activations == "dynamic-int8"):
        return
    kind = "symmetric" if codes.symmetric else "asymmetric"
    groups = "" if codes.group_size is None else f" in groups of {codes.group_size}"
    with_floats = "" if is_table or codes.activations != "float" else " with float activations"
    rounded = "" if is_table else ", and activations = 'dynamic-int8'"
    raise UnsupportedError(
        f"executorch has no kernel for {codes.bits}-bit {kind} codes{groups}{with_floats}; expected symmetric ones of "
        f"8 bits with one scale a row{rounded}. Quantize otherwise, or leave it float."
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
