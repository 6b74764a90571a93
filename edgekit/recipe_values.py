"""What happens to a recipe's TOML before it is validated: `--set` is applied, paths are found beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import JsonValue

from edgekit.errors import RecipeError


def locate(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Makes every `source` that names a file beside the recipe absolute, at any depth."""
    located: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            located[key] = locate(value, directory)
        elif key == "source" and isinstance(value, str) and not value.startswith("pkg:"):
            beside = directory / value
            located[key] = str(beside.resolve()) if beside.exists() else value
        else:
            located[key] = value
    return located


def locate_target(name: str, directory: Path) -> str:
    """Returns a target's path where it is a file beside the recipe, else the name as it is."""
    beside = directory / name
    return str(beside) if name.endswith(".toml") and beside.is_file() else name


def override(values: dict[str, Any], key: str, value: JsonValue) -> None:
    """Sets the value at a dotted key; list positions are numbers.

    Raises:
        RecipeError: the key leads nowhere.
    """
    current: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(current, list):
            if not part.isdigit() or int(part) >= len(current):
                raise RecipeError(f"--set {key}: '{part}' is not one of the positions 0 to {len(current) - 1}.")
            position: Any = int(part)
        elif isinstance(current, dict):
            position = part
            if not is_last and part not in current:
                current[part] = {}
        else:
            raise RecipeError(f"--set {key}: '{parts[depth - 1]}' holds a value, not keys.")
        if is_last:
            current[position] = value
        else:
            current = current[position]
