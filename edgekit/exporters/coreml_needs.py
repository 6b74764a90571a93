"""What the format `coreml` needs: which codes it can hold, and what writes it. Recipes are checked with it first."""

from __future__ import annotations

from edgekit.errors import EnvironmentLacksError
from edgekit.extras import install_command


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
