"""Small tokenizers of each kind for the tests of vocabulary trimming, from a list of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def wordpiece(tokens: Sequence[str], *, specials_last: bool = False) -> PreTrainedTokenizerFast:
    """Special tokens, then `tokens` (or the other way round), in this order."""
    ordered = [*tokens, *SPECIALS] if specials_last else [*SPECIALS, *tokens]
    vocabulary = {token: index for index, token in enumerate(ordered)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    return _finish(backend)


def byte_pair_encoding(
    symbols: Sequence[str], merges: Sequence[tuple[str, str]], **settings: Any
) -> PreTrainedTokenizerFast:
    """Special tokens, single symbols, then what the merges make."""
    prefix = settings.get("continuing_subword_prefix", "")
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *symbols])}
    for left, right in merges:
        vocabulary.setdefault(left + right.removeprefix(prefix), len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), unk_token="[UNK]", **settings))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finish(backend)


def unigram(pieces: Sequence[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """Special tokens with score 0, then `pieces`."""
    vocabulary = [(token, 0.0) for token in SPECIALS] + [*pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return _finish(backend)


def _finish(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
