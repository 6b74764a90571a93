"""A tokenizer as GGUF metadata: tokens, types, merges or scores, special tokens, chat template.

Byte-level BPE is GGUF's `gpt2`, SentencePiece-style BPE (pieces with a `▁`, byte fallback) its `llama`. What
llama.cpp's tokenizer does not do is refused; the other direction is `gguf_tokenizer.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from edgekit.errors import UnsupportedError
from edgekit.models.gguf_pretokenizers import splitting_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

SPACE = "▁"
_UNUSED_SCORE = -10000.0


class TokenType(IntEnum):
    """What a token is, in llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Everything that llama.cpp's tokenizer reads."""

    metadata: dict[str, Any]
    """Keys of `tokenizer.*`."""
    notes: list[str]
    """What a person should know."""


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, rows: int, generation: GenerationConfig | None = None
) -> Vocabulary:
    """Returns the metadata of a tokenizer for an embedding of `rows` tokens; rows without a token become `[PADn]`.

    Raises:
        UnsupportedError: llama.cpp has no such tokenizer, or one that gives other tokens.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(
            f"gguf: found a {model['type']} tokenizer, expected byte-level or SentencePiece-style BPE."
        )
    tokens, types = _tokens(content, rows)
    notes: list[str] = []
    if model.get("byte_fallback"):
        metadata = _sentencepiece(content, tokens, types)
    else:
        metadata = _byte_level(tokenizer, content, notes)
    metadata |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
    }
    metadata |= _special_tokens(tokenizer, generation, notes)
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = str(tokenizer.chat_template)
    return Vocabulary(metadata, notes)


def _tokens(content: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """Returns text and type of every token by id."""
    by_id = {index: token for token, index in content["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, TokenType.NORMAL)
    for token in content["added_tokens"]:
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            raise UnsupportedError(
                f"gguf: the token '{token['content']}' takes white space around it, or whole words only; expected "
                "lstrip, rstrip and single_word off: llama.cpp has none of them."
            )
        by_id[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = content["model"]["vocab"].get(content["model"].get("unk_token"))
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    if max(by_id) >= rows:
        raise UnsupportedError(f"gguf: found {max(by_id) + 1} tokens, expected at most the embedding's {rows} rows.")
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    return tokens, [types.get(index, TokenType.UNUSED) for index in range(rows)]


def _byte_level(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    splitting = splitting_of(tokenizer.backend_tokenizer)
    if splitting is None:
        raise UnsupportedError(
            f"gguf: llama.cpp has no name for the tokenizer's way of splitting words, {content['pre_tokenizer']}."
        )
    normalizer = content["normalizer"]
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise UnsupportedError(f"gguf: found the normalizer {normalizer}, expected none: llama.cpp has none.")
        notes.append("llama.cpp does not compose characters (NFC): decomposed text gives other tokens")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splitting.names[0],
        "tokenizer.ggml.merges": merges,
    }


def _sentencepiece(content: dict[str, Any], tokens: list[str], types: list[TokenType]) -> dict[str, Any]:
    """Scores instead of merges: the sooner a piece is merged, the higher its score."""
    for index, token in enumerate(tokens):
        if types[index] is TokenType.NORMAL and len(token) == 6 and token.startswith("<0x"):
            types[index] = TokenType.BYTE
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(content["model"]["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        ranks.setdefault(left + right, rank)
    # A piece that nothing merges to is reached only as one character; its score is never compared.
    scores = [-float(ranks[token]) if token in ranks else _UNUSED_SCORE for token in tokens]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [
            0.0 if kind is TokenType.BYTE else score for score, kind in zip(scores, types, strict=True)
        ],
        "tokenizer.ggml.add_space_prefix": _adds_space(content),
    }


def _adds_space(content: dict[str, Any]) -> bool:
    """Returns whether a space goes before every text, after checking that nothing else happens to it."""
    steps = content["normalizer"]
    steps = [] if steps is None else steps.get("normalizers", [steps])
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    splits = content["pre_tokenizer"]
    # Gemma splits at spaces, of which none is left by then.
    does_nothing = splits is None or (splits["type"] == "Split" and splits["pattern"] == {"String": " "})
    if does_nothing and steps in ([prepends, replaces], [replaces]):
        return bool(steps[0] == prepends)
    raise UnsupportedError(
        f"gguf: found the normalizer {content['normalizer']} and the pre-tokenizer {content['pre_tokenizer']}, "
        f"expected that spaces become '{SPACE}', with or without one put before the text, and nothing else."
    )


def _special_tokens(
    tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None, notes: list[str]
) -> dict[str, Any]:
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    ends = getattr(generation, "eos_token_id", None)
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    others = [index for index in ends if index != found["eos"]]
    # A conversation may end in several ways; llama.cpp has a key for two more than the first.
    found |= dict(zip(("eot", "eom"), others, strict=False))
    if len(others) > 2:
        notes.append(f"generation ends at {len(ends)} tokens, GGUF has keys for three: {others[2:]} left out")
    bare = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.backend_tokenizer.encode("a").ids
    start, end = [found["bos"]], [found["eos"]]
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if framed == (start if before else []) + bare + (end if after else []):
            keys = {f"tokenizer.ggml.{name}_token_id": index for name, index in found.items() if index is not None}
            return {**keys, "tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": after}
    raise UnsupportedError(
        f"gguf: the tokenizer makes {framed} of the token {bare}; expected at most the first token bos ({found['bos']})"
        f" and the last eos ({found['eos']})."
    )
