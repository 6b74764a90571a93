"""What vocabulary trimming must know of a tokenizer's model, whatever its kind.

Each kind (`wordpiece.py`, `byte_pair_encoding.py`, `unigram.py`) reads its part of `tokenizer.json` into this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]
"""An object of `tokenizer.json`, whose layout is the tokenizers library's."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class TokenizerModel:
    """The model of a tokenizer, seen as a set of tokens that may or may not be dropped.

    Ensures, for any set of kept ids that holds `required` and, with each id, its `parts`: a text whose tokens were
    all kept gets the same tokens from the model that `cut` returns, and no text gets an unknown token that had none.
    """

    tokens: Mapping[str, int]
    """Token to id."""
    required: frozenset[int]
    """Ids without which some text could no longer be written in tokens."""
    parts: Callable[[int], frozenset[int]]
    """Takes an id, of the model or not, and returns the ids that it is made from and that must be kept with it."""
    cut: Callable[[Mapping[int, int]], JsonObject]
    """Takes kept id to new id and returns the `model` of the smaller `tokenizer.json`."""


def no_parts(token_id: int) -> frozenset[int]:
    """Returns nothing: for kinds whose tokens stand alone."""
    return frozenset()


def is_byte(token: str) -> bool:
    """True for a byte fallback token such as `<0x0A>`."""
    return _BYTE.fullmatch(token) is not None
