"""Byte-pair encoding (RoBERTa, ModernBERT, GPT): which tokens may be dropped, and how.

A word starts as single symbols, and the pair with the lowest rank is merged until none is left. A token of a text is
merged from its own symbols alone, in the same order as if it stood alone. So when a token is kept with all that it is
merged from, and merges of dropped tokens are gone, a text of kept tokens goes through the very same merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from edgekit.errors import UnsupportedError
from edgekit.pruning.tokenizer_model import JsonObject, TokenizerModel, is_byte

Pair = tuple[str, str]
_SPACE = "▁"


def read_byte_pair_encoding(model: JsonObject, added: frozenset[str]) -> TokenizerModel:
    """Returns the `model` of a `tokenizer.json` as tokens that may or may not be dropped.

    Single symbols stay: bytes or characters, with the mark of a continuation or of a word's end where it has one. Where
    a character without a token is written as bytes (Llama 2, Gemma), the bytes stay, and characters need not, but for
    the mark of a space: written as bytes, it would not be turned back into one.

    Raises:
        UnsupportedError: merges are left out at random (dropout), so that no text has fixed tokens.
    """
    if model.get("dropout"):
        raise UnsupportedError(
            f"vocabulary: found byte-pair encoding with dropout {model['dropout']}, expected none. Remove the dropout."
        )
    tokens: dict[str, int] = model["vocab"]
    merges = [_pair(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    marks = (str(model.get("continuing_subword_prefix") or ""), str(model.get("end_of_word_suffix") or ""))
    required = _required(model, tokens, marks)

    @cache
    def parts(token_id: int) -> frozenset[int]:
        seen = merged_from(names[token_id], ranks, marks) if token_id in names else ()
        return frozenset(tokens[part] for part in seen) - {token_id}

    names = {token_id: token for token, token_id in tokens.items()}

    def cut(new_ids: Mapping[int, int]) -> JsonObject:
        kept = {token: new_ids[token_id] for token, token_id in tokens.items() if token_id in new_ids}
        kept_merges = [
            list(pair) for pair in merges if pair[0] in kept and pair[1] in kept and _merge(pair, marks[0]) in kept
        ]
        vocabulary = dict(sorted(kept.items(), key=lambda item: item[1]))
        return {**model, "vocab": vocabulary, "merges": kept_merges}

    return TokenizerModel(tokens, required, parts, cut)


def merged_from(token: str, ranks: Mapping[Pair, int], marks: tuple[str, str]) -> set[str]:
    """Returns every symbol and intermediate token on the way from single symbols to `token`; empty when no way is.

    Args:
        token: the token.
        ranks: pair to rank, lowest merged first.
        marks: prefix of continuations and suffix of word ends, empty where there is none.
    """
    symbols = split_symbols(token, marks)
    seen = set(symbols)
    while len(symbols) > 1:
        pairs = list(pairwise(symbols))
        place = min(range(len(pairs)), key=lambda index: ranks.get(pairs[index], len(ranks)))
        if pairs[place] not in ranks:
            return set()
        symbols[place : place + 2] = [_merge(pairs[place], marks[0])]
        seen.add(symbols[place])
    return seen


def split_symbols(token: str, marks: tuple[str, str]) -> list[str]:
    """Returns the single symbols that `token` starts as, each with its marks."""
    prefix, suffix = marks
    continues = bool(prefix) and token.startswith(prefix) and token != prefix
    ends = bool(suffix) and token.endswith(suffix) and token != suffix
    body = token[len(prefix) if continues else 0 : len(token) - (len(suffix) if ends else 0)]
    symbols = [(prefix if place or continues else "") + letter for place, letter in enumerate(body)]
    return [*symbols[:-1], symbols[-1] + (suffix if ends else "")] if symbols else [token]


def _required(model: JsonObject, tokens: Mapping[str, int], marks: tuple[str, str]) -> frozenset[int]:
    required = {tokens[str(model["unk_token"])]} if model.get("unk_token") in tokens else set()
    falls_back = bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in tokens for byte in range(256))
    for token, token_id in tokens.items():
        symbols = split_symbols(token, marks)
        # A word that is looked up whole needs no symbols, so without its token it might have none.
        alone = bool(model.get("ignore_merges")) and any(symbol not in tokens for symbol in symbols)
        single = len(symbols) == 1 and (token == _SPACE or not falls_back)
        if single or is_byte(token) or alone:
            required.add(token_id)
    return frozenset(required)


def _merge(pair: Pair, prefix: str) -> str:
    return pair[0] + pair[1].removeprefix(prefix)


def _pair(merge: str | list[str]) -> Pair:
    """Reads a merge, which older files write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
