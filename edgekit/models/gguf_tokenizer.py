"""Builds the tokenizer that a GGUF describes: the one that llama.cpp uses, as a `tokenizers` backend.

The other direction is `gguf_vocabulary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError
from edgekit.models.gguf_pretokenizers import pre_tokenizer, splitting_named
from edgekit.models.gguf_vocabulary import SPACE, TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_from(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Returns the tokenizer, with its special tokens and its chat template.

    Raises:
        ModelError: a part is missing, or it is of a kind that edgekit does not read.
    """
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"found a tokenizer of the kind '{kind}', expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece). "
            "Import the transformers directory that the file was made from."
        )
    tokens = _needed(metadata, "tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError(f"found {len(types)} token types for {len(tokens)} tokens. The file is altered.")
    backend = _byte_level(metadata, tokens) if kind == "gpt2" else _sentencepiece(metadata, tokens, types)
    _add_tokens(backend, tokens, types)
    special = {name: _special(metadata, key, tokens) for name, key in _SPECIAL.items()}
    _frame(backend, metadata, kind, special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **{k: v for k, v in special.items() if v}
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Returns the ids at which an answer ends: end of text, of turn and of message, as far as the file names them."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(index for index in ids if index is not None))


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    try:
        splitting = splitting_named(str(metadata.get("tokenizer.ggml.pre", "default")))
    except ModelError as error:
        raise ModelError(f"metadata 'tokenizer.ggml.pre': {error}") from error
    merges = [tuple(merge.split(" ")) for merge in _needed(metadata, "merges")]
    try:
        model = models.BPE(vocab=_by_text(tokens), merges=merges, ignore_merges=splitting.ignore_merges)
    except Exception as error:
        raise ModelError(f"its tokens and merges do not fit together ({error}). The file is altered.") from error
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer(splitting)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    """Scores become merges: a piece with a higher score is merged sooner, whatever two pieces it is made of."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _needed(metadata, "scores")
    vocabulary = _by_text(tokens)
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL}
    merges: list[tuple[str, str]] = []
    for token in sorted(pieces, key=lambda token: -scores[vocabulary[token]]):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        possible = [pair for pair in halves if pair[0] in pieces and pair[1] in pieces]
        merges += sorted(possible, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = _special(metadata, "unknown", tokens)
    adds_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace] if adds_space else [replace])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)
    return backend


def _add_tokens(backend: Tokenizer, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    for token, kind in zip(tokens, types, strict=True):
        if kind in kinds:
            backend.add_tokens([AddedToken(token, special=kind != TokenType.USER_DEFINED, normalized=False)])


def _frame(backend: Tokenizer, metadata: dict[str, Any], kind: str, special: dict[str, str | None]) -> None:
    """Puts the tokens before and after a text that llama.cpp puts there."""
    from tokenizers import processors

    starts_alone = kind == "llama" or metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "tekken")
    before = metadata.get("tokenizer.ggml.add_bos_token", starts_alone) and special["bos_token"]
    after = metadata.get("tokenizer.ggml.add_eos_token", False) and special["eos_token"]
    around = [token for token in (before, after) if token]
    if around:
        frame = f"{before or ''} $A {after or ''}".strip()
        ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(around)]
        backend.post_processor = processors.TemplateProcessing(single=frame, pair=f"{frame} $B", special_tokens=ids)


def _special(metadata: dict[str, Any], name: str, tokens: list[str]) -> str | None:
    index = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if index is None:
        return None
    if index >= len(tokens):
        raise ModelError(f"its {name} token is number {index}, but it has {len(tokens)} tokens. The file is altered.")
    return str(tokens[index])


def _needed(metadata: dict[str, Any], name: str) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value:
        raise ModelError(f"found no metadata 'tokenizer.ggml.{name}': the file holds no whole tokenizer.")
    return value


def _by_text(tokens: list[str]) -> dict[str, int]:
    by_text = {token: index for index, token in enumerate(tokens)}
    if len(by_text) != len(tokens):
        raise ModelError(f"found {len(tokens)} tokens, of which {len(tokens) - len(by_text)} stand there twice.")
    return by_text
