"""Which tokens end an answer, as the files of a model say it."""

from __future__ import annotations

import json
from pathlib import Path

_FILES = ("generation_config.json", "config.json")


def end_token_ids(directory: Path, usual: int | None) -> frozenset[int]:
    """Returns the tokens that end an answer: those of `generation_config.json`, else of `config.json`, and `usual`."""
    found = set() if usual is None else {usual}
    for name in _FILES:
        file = directory / name
        named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if named is not None:
            return frozenset(found | set(named if isinstance(named, list) else [named]))
    return frozenset(found)
