"""Tokenizers of the kinds that GGUF knows, made in code: byte-level for each way of splitting, and SentencePiece."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.models.gguf_pretokenizers import Splitting, pre_tokenizer
from tests.pico_decoders import CHAT_TEMPLATE, TRAINING_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def byte_level_tokenizer(splitting: Splitting) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer that splits so, with merges of digits and of line ends among others."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(ignore_merges=splitting.ignore_merges))
    backend.pre_tokenizer = pre_tokenizer(splitting)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[AddedToken(token, special=True) for token in _SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    digits = " 1234567890 12 123 1234 3.14 2024 1,000,000 don't can't it's DON'T\r\n\r\n\n\n   x  y   z !!! ... ///"
    backend.train_from_iterator([TRAINING_TEXT + digits] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sentencepiece_tokenizer(*, adds_space: bool = True) -> PreTrainedTokenizerFast:
    """Returns a tokenizer as Llama 2's: pieces with `▁`, bytes for what no piece has, a token before every text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *(f"<0x{n:02X}>" for n in range(256))])}
    merges: list[tuple[str, str]] = []
    for word in ["▁the", "▁sea", "ing", "▁on", "er", "▁▁", "▁a", "▁and", "▁shells", "▁one", "ell", "th", "10"]:
        left = word[0]
        for letter in word[1:]:
            if left + letter not in vocabulary:
                merges.append((left, letter))
                vocabulary[left + letter] = -1
            left += letter
    for letter in "▁abcdefghijklmnopqrstuvwxyzATS.,!?0123456789éü":
        vocabulary[letter] = -1
    # As SentencePiece numbers them: pieces in the order in which they were merged, then the characters.
    pieces = [left + right for left, right in merges]
    ordered = [*list(vocabulary)[:259], *pieces, *(t for t in vocabulary if vocabulary[t] == -1 and t not in pieces)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(ordered))}
    complete = []
    for piece in pieces:
        halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        complete += [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=complete, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if adds_space else [replace])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
