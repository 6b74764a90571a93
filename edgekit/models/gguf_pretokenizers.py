"""llama.cpp's names for the ways in which byte-level BPE splits text into words, and the same in `tokenizers`.

A GGUF holds the name only. A tokenizer whose splitting has no name here cannot be written as GGUF.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """How text becomes words before merges apply."""

    names: tuple[str, ...]
    """llama.cpp's names; the first one is written."""
    pattern: str | None
    """Regular expression of a word; None: GPT-2's own, inside `ByteLevel`."""
    digits: bool = False
    """Every digit is a word of its own."""
    ignore_merges: bool = False
    """A word that is a token is taken whole."""


SPLITTINGS: tuple[Splitting, ...] = (
    Splitting(("gpt-2", "phi-2", "olmo", "mpt", "jais", "modern-bert", "exaone4"), None),
    Splitting(("smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b"), None, digits=True),
    Splitting(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        _WORDS + r"|\p{N}{1,3}" + _REST,
        ignore_merges=True,
    ),
    Splitting(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _WORDS + r"|\p{N}{1,3}" + _REST),
    Splitting(
        ("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open"), _WORDS + r"|\p{N}" + _REST
    ),
    Splitting(("tekken",), _CASED, ignore_merges=True),
)


def splitting_of(backend: Tokenizer) -> Splitting | None:
    """Returns how a byte-level tokenizer splits, or None when llama.cpp has no name for it."""
    content = json.loads(backend.to_str())
    found = _without_offsets(content["pre_tokenizer"])
    ignores = bool(content["model"].get("ignore_merges"))
    for splitting in SPLITTINGS:
        if splitting.ignore_merges == ignores and _without_offsets(_as_json(splitting)) == found:
            return splitting
    return None


def splitting_named(name: str) -> Splitting:
    """Returns the splitting that llama.cpp calls `name`.

    Raises:
        ModelError: edgekit does not know it.
    """
    for splitting in SPLITTINGS:
        if name in splitting.names:
            return splitting
    known = ", ".join(name for splitting in SPLITTINGS for name in splitting.names)
    raise ModelError(
        f"found the pre-tokenizer '{name}', expected one of {known}. Import the transformers directory that the file "
        "was made from."
    )


def pre_tokenizer(splitting: Splitting) -> PreTokenizer:
    """Returns the pre-tokenizer of `tokenizers` that splits so and maps bytes to characters."""
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None)
    if splitting.pattern is not None:
        split = pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([split, byte_level])
    if splitting.digits:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


def _as_json(splitting: Splitting) -> Any:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer(splitting)
    return json.loads(backend.to_str())["pre_tokenizer"]


def _without_offsets(content: Any) -> Any:
    """Drops what changes offsets only."""
    if isinstance(content, dict):
        return {key: _without_offsets(value) for key, value in content.items() if key != "trim_offsets"}
    if isinstance(content, list):
        return [_without_offsets(value) for value in content]
    return content
