"""What is run while it is measured: batches of token ids of one shape, drawn from a seed or cut from real texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DataError, ModelError, UsageError
from edgekit.runtimes.protocol import ModelOnDisk

VARIANTS = 8
"""Batches that take turns, so that no call finds the embedding rows of the call before it in the cache."""


@dataclass(frozen=True)
class Scenario:
    """Batches of one shape; every token is attended to."""

    batch: int
    """Rows a call."""
    length: int
    """Tokens a row."""
    input_ids: list[list[list[int]]]
    """`VARIANTS` batches, each `batch` rows of `length` ids."""


def random_scenario(model: ModelOnDisk, batch: int, length: int, *, seed: int) -> Scenario:
    """Returns ids drawn evenly from the vocabulary without the special tokens; equal seeds give equal ids.

    Raises:
        UsageError: the model has no room for `length` tokens.
        ModelError: `config.json` is missing or does not tell the size of the vocabulary.
    """
    import numpy as np

    config = _config(model)
    _require_room(config, length, model.path)
    special = _special_ids(model.path)
    ordinary = np.array([token for token in range(_vocabulary_size(config, model.path)) if token not in special])
    drawn = np.random.default_rng(seed).choice(ordinary, size=(VARIANTS, batch, length))
    return Scenario(batch, length, drawn.tolist())


def text_scenario(model: ModelOnDisk, texts: Sequence[str], batch: int, length: int, *, seed: int) -> Scenario:
    """Returns ids of real texts, drawn in random order and joined until every row is exactly `length` tokens long.

    Raises:
        UsageError: the model has no room for `length` tokens.
        DataError: the texts hold no token.
    """
    import numpy as np

    from edgekit.data.preprocessing import encode
    from edgekit.models.tokenizer import TOKENIZER_FILE, load_bare_tokenizer

    _require_room(_config(model), length, model.path)
    tokenizer = load_bare_tokenizer(model.path / TOKENIZER_FILE)
    needed = VARIANTS * batch * length
    stream: list[int] = []
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    for row in order:
        stream.extend(encode([texts[row]], tokenizer, length, allow_empty=True)[0])
        if len(stream) >= needed:
            break
    if not stream:
        raise DataError("the texts to measure on: found no token, expected at least one text.")
    ids = np.resize(np.array(stream), (VARIANTS, batch, length))
    return Scenario(batch, length, ids.tolist())


def _config(model: ModelOnDisk) -> dict[str, object]:
    file = model.path / "config.json"
    try:
        config: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read ({error}). Expected the model's configuration.") from error
    return config


def _vocabulary_size(config: dict[str, object], path: Path) -> int:
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise ModelError(f"{path / 'config.json'}: vocab_size: found {size!r}, expected a number.")
    return size


def _require_room(config: dict[str, object], length: int, path: Path) -> None:
    room = config.get("max_position_embeddings")
    if isinstance(room, int) and 0 < room < length:
        raise UsageError(f"length: found {length}, expected at most {room}: {path} has no more positions.")


def _special_ids(path: Path) -> set[int]:
    """Returns the ids of the special tokens, from `tokenizer.json`; empty where there is none."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return set()
    added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens", [])
    return {token["id"] for token in added if token.get("special")}
