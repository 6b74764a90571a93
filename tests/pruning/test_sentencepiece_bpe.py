"""Trimming of SentencePiece-style byte-pair encoding: characters that have no token are written as bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgekit.models.tokenizer import NASTY_TEXTS, load_tokenizer, save_tokenizer
from edgekit.pruning.vocabulary import choose_tokens, count_tokens, read_vocabulary, trim_tokenizer
from tests.pico import pico_texts
from tests.pruning.test_vocabulary import assert_trimmed_soundly, draw_ids

LETTERS = ["▁", *"abc", "é", "字"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIALS = ["<unk>", "<s>", "</s>", "<turn>"]
# 'z' and 'ß' have no token: they are bytes already.
TEXTS = st.lists(st.text(alphabet=[*"aabbcc", " ", "é", "字", "z", "ß", "\n"], max_size=16), min_size=1, max_size=8)


def sentencepiece(style: str, merges: list[tuple[str, str]], letters: list[str] = LETTERS) -> PreTrainedTokenizerFast:
    """Llama 2's manner or Gemma's: special tokens, bytes, what merges make, then characters."""
    made = list(dict.fromkeys(left + right for left, right in merges))
    tokens = dict.fromkeys([*SPECIALS, *BYTES, *made, *letters])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if style == "llama":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if style == "llama" else []))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def draw_merges(data: st.DataObject) -> list[tuple[str, str]]:
    tokens, merges = list(LETTERS), list[tuple[str, str]]()
    for _ in range(data.draw(st.integers(0, 12))):
        pair = (data.draw(st.sampled_from(tokens[::-1])), data.draw(st.sampled_from(tokens)))
        if pair not in merges and "▁" not in pair[1]:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["llama", "gemma"]), TEXTS, st.data())
def test_it_is_trimmed_soundly_and_every_text_still_reads_the_same(
    style: str, texts: list[str], data: st.DataObject
) -> None:
    merges = draw_merges(data)
    tokenizer = sentencepiece(style, merges)
    chosen = draw_ids(data, tokenizer)
    texts = [*texts, *("".join(pair).replace("▁", " ") for pair in merges)]
    assert_trimmed_soundly(tokenizer, chosen, texts)
    vocabulary = read_vocabulary(tokenizer)
    trimmed = trim_tokenizer(tokenizer, vocabulary, sorted(vocabulary.with_parts({*vocabulary.required, *chosen})))
    for text in texts:
        assert trimmed.decode(trimmed.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("style", ["llama", "gemma"])
def test_characters_may_go_and_are_then_bytes(style: str) -> None:
    tokenizer = sentencepiece(style, [("a", "b"), ("字", "字")])
    vocabulary = read_vocabulary(tokenizer)
    names = {tokenizer.convert_ids_to_tokens(index) for index in vocabulary.required}
    assert names == {*SPECIALS, *BYTES, "▁"}
    kept = sorted(vocabulary.with_parts({*vocabulary.required, *tokenizer.convert_tokens_to_ids(["字字"])}))
    trimmed = trim_tokenizer(tokenizer, vocabulary, kept)
    assert set(trimmed.get_vocab()) == {*SPECIALS, *BYTES, "▁", "字", "字字"}  # a token comes with its characters
    assert trimmed.tokenize("字字é a<turn>")[-5:] == ["<0xC3>", "<0xA9>", "▁", "<0x61>", "<turn>"]
    assert trimmed.decode(trimmed.encode("字字é a"), skip_special_tokens=True) == "字字é a"


def test_characters_stay_where_a_byte_is_missing() -> None:
    tokenizer = sentencepiece("llama", [])
    document = tokenizer.backend_tokenizer.to_str().replace('"<0xC3>"', '"<0xC3!>"')
    broken = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(document), unk_token="<unk>")
    names = {broken.convert_ids_to_tokens(index) for index in read_vocabulary(broken).required}
    assert set(LETTERS) <= names


@pytest.mark.parametrize("style", ["llama", "gemma"])
def test_it_survives_saving(style: str, tmp_path) -> None:
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "n"), ("i", "n"), ("in", "g"), ("o", "o"), ("oo", "d")]
    tokenizer = sentencepiece(style, merges, ["▁", *"abcdefghijklmnopqrstuvwxyz.,!?"])
    tokenizer.chat_template = "{{ messages[0].content }}"
    vocabulary = read_vocabulary(tokenizer)
    counts = count_tokens(pico_texts(40)[0], tokenizer, 64, vocabulary.size)
    kept = choose_tokens(vocabulary, [counts], size=len(vocabulary.required) + 20)
    trimmed = trim_tokenizer(tokenizer, vocabulary, kept)
    save_tokenizer(trimmed, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert len(loaded) == len(kept) < len(tokenizer)
    assert loaded.chat_template == tokenizer.chat_template
    for text in [*pico_texts(20)[0], *NASTY_TEXTS]:
        assert loaded(text)["input_ids"] == trimmed(text)["input_ids"]
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
