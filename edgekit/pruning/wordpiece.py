"""WordPiece vocabularies (BERT, DistilBERT, ELECTRA, MPNet): which tokens may be dropped, and how.

A word is cut greedily: the longest token that fits, then the longest continuation. Dropping tokens never changes
a word whose tokens are kept, for each was the longest and still is. A word gets stuck, and becomes unknown, only at
a character without a token of its own, so every single character stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.errors import UnsupportedError
from edgekit.pruning.tokenizer_model import JsonObject, TokenizerModel, no_parts


def read_wordpiece(model: JsonObject, added: frozenset[str]) -> TokenizerModel:
    """Returns the `model` of a `tokenizer.json` as tokens that may or may not be dropped.

    A token with a character that has no token of its own stays. `added` tokens are matched before the model and need
    no rule.

    Raises:
        UnsupportedError: such a character is inside a continuation: dropping tokens before it might leave it alone.
    """
    tokens: dict[str, int] = model["vocab"]
    prefix = str(model["continuing_subword_prefix"])
    required: set[int] = set()
    for token, token_id in tokens.items():
        continues = token.startswith(prefix) and token != prefix
        body = token.removeprefix(prefix) if continues else token
        pieces = [(prefix if place or continues else "") + letter for place, letter in enumerate(body)]
        missing = [place for place, piece in enumerate(pieces) if piece not in tokens]
        if len(body) == 1 or missing:
            required.add(token_id)
        if continues and any(missing) and token not in added:
            piece = pieces[next(filter(None, missing))]
            raise UnsupportedError(
                f"vocabulary: there is a token '{token}' and no token '{piece}': with fewer tokens some words could "
                "become unknown. Leave the vocabulary as it is."
            )
    unknown = tokens.get(str(model["unk_token"]))
    if unknown is not None:
        required.add(unknown)

    def cut(new_ids: Mapping[int, int]) -> JsonObject:
        kept = {token: new_ids[token_id] for token, token_id in tokens.items() if token_id in new_ids}
        return {**model, "vocab": dict(sorted(kept.items(), key=lambda item: item[1]))}

    return TokenizerModel(tokens, frozenset(required), no_parts, cut)
