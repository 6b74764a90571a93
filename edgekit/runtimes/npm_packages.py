"""Finds npm packages as Node.js does: in the directories `node_modules` here and above, or in one that is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

from edgekit.errors import EnvironmentLacksError

LOCATION_VARIABLE = "EDGEKIT_NODE_MODULES"
"""Names the directory `node_modules` that is looked into instead of those of the working directory and above."""


def find_package(name: str) -> Path | None:
    """Returns the directory of an npm package, or None."""
    named = os.environ.get(LOCATION_VARIABLE)
    here = Path.cwd()
    places = [Path(named).expanduser()] if named else [parent / "node_modules" for parent in (here, *here.parents)]
    return next((place / name for place in places if (place / name / "package.json").is_file()), None)


def missing_package(name: str) -> str | None:
    """Returns None when the package is at hand, else how to install it."""
    if find_package(name) is not None:
        return None
    return (
        f"found no npm package '{name}'. Install it here: npm install {name} - or name the directory node_modules that "
        f"holds it in the environment variable {LOCATION_VARIABLE}."
    )


def require_package(name: str) -> Path:
    """Returns the directory of an npm package.

    Raises:
        EnvironmentLacksError: it is not at hand.
    """
    found = find_package(name)
    if found is None:
        raise EnvironmentLacksError(str(missing_package(name)))
    return found


def package_version(name: str) -> str:
    """Returns the version that the package's own file names.

    Raises:
        EnvironmentLacksError: it is not at hand.
    """
    return str(json.loads((require_package(name) / "package.json").read_text(encoding="utf-8"))["version"])
