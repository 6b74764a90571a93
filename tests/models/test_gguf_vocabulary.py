import json

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import GenerationConfig

from edgekit.errors import UnsupportedError
from edgekit.models.gguf_pretokenizers import SPLITTINGS, Splitting, splitting_of
from edgekit.models.gguf_tokenizer import end_tokens, tokenizer_from
from edgekit.models.gguf_vocabulary import TokenType, vocabulary_of
from edgekit.models.tokenizer import NASTY_TEXTS
from tests.pico import pico_tokenizer
from tests.pico_decoders import TRAINING_TEXT, pico_byte_tokenizer
from tests.tokenizers_for_gguf import byte_level_tokenizer, sentencepiece_tokenizer

TEXTS = [*NASTY_TEXTS, TRAINING_TEXT, "a<|im_start|>b </s>c", "12345 DON'T\r\n\n x"]


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda splitting: splitting.names[0])
def test_a_byte_level_tokenizer_survives(splitting: Splitting) -> None:
    tokenizer = byte_level_tokenizer(splitting)
    assert splitting_of(tokenizer.backend_tokenizer) is splitting
    metadata = vocabulary_of(tokenizer, 500).metadata
    assert metadata["tokenizer.ggml.pre"] == splitting.names[0]
    back = tokenizer_from(metadata)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert back(text).input_ids == ids
        assert back.decode(ids) == tokenizer.decode(ids)
    assert back.chat_template == tokenizer.chat_template
    assert back.special_tokens_map == tokenizer.special_tokens_map


@pytest.mark.parametrize("adds_space", [True, False])
def test_a_sentencepiece_tokenizer_survives(adds_space: bool) -> None:
    tokenizer = sentencepiece_tokenizer(adds_space=adds_space)
    if not adds_space:  # as Gemma's
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    metadata = vocabulary_of(tokenizer, len(tokenizer)).metadata
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.add_space_prefix"]) == ("llama", adds_space)
    back = tokenizer_from(metadata)
    for text in TEXTS:
        assert back(text).input_ids == tokenizer(text).input_ids


def test_types_and_scores_by_hand() -> None:
    tokenizer = sentencepiece_tokenizer()
    metadata = vocabulary_of(tokenizer, len(tokenizer) + 2).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert tokens[-1] == f"[PAD{len(tokenizer) + 1}]"
    assert types[-1] == TokenType.UNUSED
    # "▁t" is the first merge of all, "▁th" the next.
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
    assert scores["▁t"] == 0
    assert scores["▁t"] > scores["▁th"] > scores["▁the"] > scores["▁s"]
    assert (metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]) == (True, False)


def test_an_answer_may_end_in_three_ways() -> None:
    generation = GenerationConfig(eos_token_id=[2, 0, 3, 5])
    vocabulary = vocabulary_of(pico_byte_tokenizer(), 300, generation)
    assert end_tokens(vocabulary.metadata) == [2, 0, 3]
    assert vocabulary.notes == ["generation ends at 4 tokens, GGUF has keys for three: [5] left out"]


def test_tokenizers_that_llama_cpp_does_not_have_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="found a WordPiece tokenizer, expected byte-level"):
        vocabulary_of(pico_tokenizer("bert"), 1000)
    tokenizer = pico_byte_tokenizer()
    with pytest.raises(UnsupportedError, match="found 300 tokens, expected at most the embedding's 299 rows"):
        vocabulary_of(tokenizer, 299)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UnsupportedError, match=r"found the normalizer .*Lowercase"):
        vocabulary_of(tokenizer, 300)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert vocabulary_of(tokenizer, 300).notes == [
        "llama.cpp does not compose characters (NFC): decomposed text gives other tokens"
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(UnsupportedError, match="no name for the tokenizer's way of splitting words"):
        vocabulary_of(tokenizer, 300)


def test_a_token_that_takes_white_space_is_refused() -> None:
    tokenizer = pico_byte_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<end>", rstrip=True)])
    with pytest.raises(UnsupportedError, match="the token '<end>' takes white space around it"):
        vocabulary_of(tokenizer, 301)


def test_a_sentencepiece_tokenizer_that_normalizes_is_refused() -> None:
    tokenizer = sentencepiece_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.normalizer.__getstate__())
    assert content["type"] == "Sequence"
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(UnsupportedError, match=r"expected that spaces become '▁'"):
        vocabulary_of(tokenizer, len(tokenizer))
    # It puts a space before a text only where there is none, llama.cpp always.
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    with pytest.raises(UnsupportedError, match=r"expected that spaces become '▁'"):
        vocabulary_of(tokenizer, len(tokenizer))
