"""Unigram vocabularies (SentencePiece: XLM-R, ALBERT, DeBERTa-v2, T5): which tokens may be dropped, and how.

A text is cut so that the sum of its pieces' scores is largest. Dropping pieces leaves a cut of kept pieces the best,
for it was best among more. A character is unknown only where it has no piece of its own, so every single character
stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.errors import UnsupportedError
from edgekit.pruning.tokenizer_model import JsonObject, TokenizerModel, is_byte, no_parts


def read_unigram(model: JsonObject, added: frozenset[str]) -> TokenizerModel:
    """Returns the `model` of a `tokenizer.json` as tokens that may or may not be dropped.

    Raises:
        UnsupportedError: a piece has a character without a piece of its own, so that without the piece it might
            become unknown.
    """
    pieces = [(str(piece), score) for piece, score in model["vocab"]]
    tokens = {piece: token_id for token_id, (piece, _) in enumerate(pieces)}
    unknown: int | None = model.get("unk_id")
    required = {token_id for piece, token_id in tokens.items() if len(piece) == 1 or is_byte(piece)}
    if unknown is not None:
        required.add(unknown)
    for piece, token_id in tokens.items():
        lonely = [letter for letter in piece if letter not in tokens]
        if lonely and token_id not in required and piece not in added:
            raise UnsupportedError(
                f"vocabulary: token '{piece}' holds '{lonely[0]}', which has no token of its own: with fewer tokens "
                "some texts could hold an unknown token. Leave the vocabulary as it is."
            )

    def cut(new_ids: Mapping[int, int]) -> JsonObject:
        kept = [[piece, score] for token_id, (piece, score) in enumerate(pieces) if token_id in new_ids]
        return {
            **model,
            "vocab": kept,
            "unk_id": None if unknown is None else new_ids[unknown],
        }

    return TokenizerModel(tokens, frozenset(required), no_parts, cut)
