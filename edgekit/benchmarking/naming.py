"""What models are called in tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def label_models(paths: Iterable[Path]) -> dict[Path, str]:
    """Returns each model's directory with a name for tables: its last part, or all of it where two share that."""
    distinct = list(dict.fromkeys(paths))
    names = [path.name for path in distinct]
    return {path: name if names.count(name) == 1 else str(path) for path, name in zip(distinct, names, strict=True)}
