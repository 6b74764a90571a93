"""What the format `litert` needs: which codes it can hold, and what writes it. Recipes are checked with it first."""

from __future__ import annotations

from edgekit.errors import EnvironmentLacksError, UnsupportedError
from edgekit.exporters.block_types import Codes
from edgekit.extras import install_command


def require_kernel(codes: Codes, *, is_table: bool) -> None:
    """Does nothing where LiteRT has a kernel that reads such codes, of a linear or of a table.

    Raises:
        UnsupportedError: it has none.
    """
    bits = (8,) if is_table else (8, 4)
    if codes.group_size is None and codes.symmetric and codes.bits in bits:
        return
    kind = "symmetric" if codes.symmetric else "asymmetric"
    groups = "" if codes.group_size is None else f" in groups of {codes.group_size}"
    raise UnsupportedError(
        f"litert has no kernel for {codes.bits}-bit {kind} codes{groups}; expected symmetric ones of "
        f"{' or '.join(map(str, bits))} bits with one scale a row. Quantize otherwise, or leave it float."
    )


def require_converter() -> None:
    """Does nothing where litert-torch and the interpreter are installed.

    Raises:
        EnvironmentLacksError: one is not; says how to install it.
    """
    from importlib.util import find_spec

    for module in ("litert_torch", "ai_edge_litert"):
        if find_spec(module) is None:
            raise EnvironmentLacksError(
                f"litert: the package '{module.replace('_', '-')}' is not installed. Install it: "
                f"{install_command('litert')}"
            )
