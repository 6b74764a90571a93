"""What the format `coreml` needs: which codes it can hold, and what writes it. Recipes are checked with it first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgekit.errors import EnvironmentLacksError
from edgekit.exporters.block_types import Codes
from edgekit.extras import install_command

System = Literal["iOS16", "iOS18"]


def oldest_system(codes: Iterable[Codes]) -> System:
    """Returns the oldest system that reads such codes, as coremltools calls it; `iOS16` is macOS 13, `iOS18` macOS 15.

    Groups, and codes of fewer than 8 bits, came with the second.
    """
    return "iOS18" if any(each.bits != 8 or each.group_size is not None for each in codes) else "iOS16"


def require_coremltools() -> None:
    """Does nothing where coremltools is installed.

    Raises:
        EnvironmentLacksError: it is not; says how to install it.
    """
    from importlib.util import find_spec

    if find_spec("coremltools") is None:
        raise EnvironmentLacksError(
            f"coreml: the package 'coremltools' is not installed. Install it: {install_command('coreml')}"
        )
