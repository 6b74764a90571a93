"""The property that holds for every kind of tokenizer, and the choice of tokens."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.tokenizer import NASTY_TEXTS, load_tokenizer, save_tokenizer
from edgekit.pruning.vocabulary import choose_tokens, count_tokens, coverage, read_vocabulary, trim_tokenizer
from tests.pico import ARCHITECTURES, pico_texts, pico_tokenizer
from tests.pruning.tokenizers_in_code import byte_pair_encoding, unigram, wordpiece

LETTERS = "abc"
# 'z' and 'é' have no token in the tokenizers below.
TEXTS = st.lists(st.text(alphabet=[*LETTERS, *LETTERS, " ", "z", "é"], max_size=14), min_size=1, max_size=8)
WORDS = st.text(alphabet=LETTERS, min_size=2, max_size=5)


def assert_trimmed_soundly(tokenizer: PreTrainedTokenizerBase, chosen: set[int], texts: list[str]) -> None:
    """Kept tokens are found as before, and nothing becomes unknown."""
    vocabulary = read_vocabulary(tokenizer)
    kept = sorted(vocabulary.with_parts({*vocabulary.required, *chosen}))
    trimmed = trim_tokenizer(tokenizer, vocabulary, kept)
    new_ids = {old: new for new, old in enumerate(kept)}
    assert len(trimmed) == len(kept)
    assert trimmed.convert_ids_to_tokens(list(range(len(kept)))) == tokenizer.convert_ids_to_tokens(kept)
    for text in texts:
        before, after = tokenizer(text)["input_ids"], trimmed(text)["input_ids"]
        if set(before) <= set(kept):
            assert after == [new_ids[token_id] for token_id in before]
        assert after.count(trimmed.unk_token_id) == before.count(tokenizer.unk_token_id)


def draw_ids(data: st.DataObject, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return data.draw(st.sets(st.integers(0, len(tokenizer) - 1)))


@settings(max_examples=100, deadline=None)
@given(st.sets(WORDS, max_size=10), st.sets(WORDS, max_size=10), TEXTS, st.booleans(), st.data())
def test_wordpiece_is_trimmed_soundly(
    starts: set[str], continuations: set[str], texts: list[str], specials_last: bool, data: st.DataObject
) -> None:
    tokens = [*LETTERS, *sorted(starts), *(f"##{token}" for token in [*LETTERS, *sorted(continuations)])]
    tokenizer = wordpiece(tokens, specials_last=specials_last)
    assert_trimmed_soundly(tokenizer, draw_ids(data, tokenizer), texts)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([("", ""), ("", "</w>"), ("##", "")]), st.booleans(), TEXTS, st.data())
def test_byte_pair_encoding_is_trimmed_soundly(
    marks: tuple[str, str], ignore_merges: bool, texts: list[str], data: st.DataObject
) -> None:
    prefix, suffix = marks
    symbols = sorted({*LETTERS, *(prefix + letter for letter in LETTERS), *(letter + suffix for letter in LETTERS)})
    tokens, merges = list(symbols), list[tuple[str, str]]()
    for _ in range(data.draw(st.integers(0, 12))):  # any two tokens may merge, the same token in several ways
        left = data.draw(st.sampled_from([token for token in tokens if not suffix or not token.endswith(suffix)][::-1]))
        right = data.draw(st.sampled_from([token for token in tokens if token.startswith(prefix)]))
        if (left, right) not in merges:
            merges.append((left, right))
            tokens.append(left + right.removeprefix(prefix))
    bodies = [token.removeprefix(prefix).removesuffix(suffix) for token in tokens]
    texts = [*texts, *bodies, *data.draw(st.lists(st.lists(st.sampled_from(bodies)).map("".join), max_size=8))]
    tokenizer = byte_pair_encoding(
        symbols,
        merges,
        ignore_merges=ignore_merges,
        **({"continuing_subword_prefix": prefix} if prefix else {}),
        **({"end_of_word_suffix": suffix} if suffix else {}),
    )
    assert_trimmed_soundly(tokenizer, draw_ids(data, tokenizer), texts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(WORDS, st.integers(-9, -1)), max_size=14, unique_by=lambda piece: piece[0]), TEXTS, st.data())
def test_unigram_is_trimmed_soundly(pieces: list[tuple[str, int]], texts: list[str], data: st.DataObject) -> None:
    singles = [(letter, float(data.draw(st.integers(-12, -3)))) for letter in ["▁", *LETTERS]]
    scored = [(piece, float(score)) for piece, score in pieces]  # whole numbers: many cuts of a text tie
    tokenizer = unigram([*singles, *scored, *((f"▁{piece}", score - 0.5) for piece, score in scored[::2])])
    assert_trimmed_soundly(tokenizer, draw_ids(data, tokenizer), texts)


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokenizers_of_real_architectures_are_trimmed_soundly(architecture: str, data: st.DataObject) -> None:
    tokenizer = pico_tokenizer(architecture)
    texts = [*pico_texts(30)[0], *NASTY_TEXTS, data.draw(st.text())]
    assert_trimmed_soundly(tokenizer, draw_ids(data, tokenizer), texts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trimmed_tokenizer_is_of_the_same_class_and_survives_saving(architecture: str, tmp_path) -> None:
    tokenizer = pico_tokenizer(architecture)
    vocabulary = read_vocabulary(tokenizer)
    dropped = set(range(0, len(tokenizer), 3)) - vocabulary.required
    kept = sorted(vocabulary.with_parts(set(range(len(tokenizer))) - dropped))
    trimmed = trim_tokenizer(tokenizer, vocabulary, kept)
    save_tokenizer(trimmed, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(trimmed) is type(tokenizer)
    assert len(loaded) == len(kept) < len(tokenizer)
    for text in [*pico_texts(20)[0], *NASTY_TEXTS]:
        assert loaded(text)["input_ids"] == trimmed(text)["input_ids"]
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        assert kept[getattr(loaded, f"{name}_id")] == getattr(tokenizer, f"{name}_id")
    assert len(tokenizer("good movie")["input_ids"]) == len(pico_tokenizer(architecture)("good movie")["input_ids"])


def test_special_tokens_get_their_new_ids_in_pairs_too() -> None:
    tokenizer = wordpiece(["a", "b", "##a", "##b", "ab", "##ab"], specials_last=True)
    vocabulary = read_vocabulary(tokenizer)
    trimmed = trim_tokenizer(tokenizer, vocabulary, sorted(vocabulary.required))
    assert len(trimmed) == 8
    assert tokenizer("ab", "a").tokens() == ["[CLS]", "ab", "[SEP]", "a", "[SEP]"]
    assert trimmed("ab", "a").tokens() == ["[CLS]", "a", "##b", "[SEP]", "a", "[SEP]"]
    assert trimmed("ab", "a")["input_ids"] == [6, 0, 3, 7, 0, 7]
    assert trimmed.pad(trimmed(["a", "ab"]))["input_ids"][0][-1] == trimmed.pad_token_id == 4


def test_padding_and_tokens_added_later_follow() -> None:
    tokenizer = wordpiece(["a", "##a", "aa", "##aa"], specials_last=True)
    tokenizer.add_tokens(["<user>"])
    tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token="[PAD]")
    vocabulary = read_vocabulary(tokenizer)
    trimmed = trim_tokenizer(tokenizer, vocabulary, sorted(vocabulary.required))
    assert json.loads(trimmed.backend_tokenizer.to_str())["padding"]["pad_id"] == trimmed.pad_token_id == 2
    assert trimmed("aa <user>").tokens() == ["[CLS]", "a", "##a", "<user>", "[SEP]"]
    assert trimmed.convert_tokens_to_ids("<user>") == 6


def test_the_most_frequent_tokens_stay_and_each_corpus_weighs_the_same() -> None:
    tokenizer = wordpiece(["a", "b", "##a", "##b", "aa", "ab", "ba", "bb"])
    vocabulary = read_vocabulary(tokenizer)
    assert len(vocabulary.required) == 8
    small, large = np.zeros(12, np.int64), np.zeros(12, np.int64)
    small[8], small[9], small[4] = 7, 1, 2  # aa 70 %, ab 10 %, a 20 %
    large[10], large[9], large[11] = 450, 450, 100  # ba 45 %, ab 45 %, bb 10 %
    names = tokenizer.convert_ids_to_tokens
    assert names(choose_tokens(vocabulary, [small, large], size=9))[8:] == ["aa"]
    assert names(choose_tokens(vocabulary, [small, large], size=10))[8:] == ["aa", "ab"]
    assert names(choose_tokens(vocabulary, [small + large], size=10))[8:] == ["ab", "ba"]
    assert names(choose_tokens(vocabulary, [small], size=12))[8:] == ["aa", "ab"]
    assert names(choose_tokens(vocabulary, [small, large], min_count=100))[8:] == ["ab", "ba", "bb"]
    kept = choose_tokens(vocabulary, [small, large], size=9)
    assert coverage(small, kept) == pytest.approx(0.9)
    assert coverage(large, kept) == 0.0
    assert coverage(np.zeros(12, np.int64), kept) == 1.0


def test_a_token_that_comes_with_more_parts_than_fit_stays_out() -> None:
    tokenizer = byte_pair_encoding("abcd", [("a", "b"), ("ab", "c"), ("abc", "d"), ("c", "d")])
    vocabulary = read_vocabulary(tokenizer)
    counts = np.zeros(len(tokenizer), np.int64)
    counts[tokenizer.convert_tokens_to_ids("abcd")] = 9
    counts[tokenizer.convert_tokens_to_ids("cd")] = 1
    names = tokenizer.convert_ids_to_tokens
    assert names(choose_tokens(vocabulary, [counts], size=10))[8:] == ["cd"]
    assert names(choose_tokens(vocabulary, [counts], size=11))[8:] == ["ab", "abc", "abcd"]


@pytest.mark.parametrize("size", [7, 13])
def test_a_size_that_cannot_be_reached_is_an_error(size: int) -> None:
    vocabulary = read_vocabulary(wordpiece(["a", "b", "##a", "##b", "aa", "ab", "ba", "bb"]))
    with pytest.raises(UsageError, match=f"vocabulary_size: found {size}, expected 8 .* to 12"):
        choose_tokens(vocabulary, [np.zeros(12, np.int64)], size=size)


def test_counts_are_those_of_what_the_model_sees() -> None:
    tokenizer = pico_tokenizer("bert")
    texts = [*pico_texts(50)[0], "good " * 100, ""]
    counts = count_tokens(texts, tokenizer, 16, len(tokenizer))
    expected = Counter[int]()
    for text in texts:
        expected.update(tokenizer(text, truncation=True, max_length=16)["input_ids"][1:-1])
    tokenizer.backend_tokenizer.no_truncation()
    assert {int(index): int(counts[index]) for index in counts.nonzero()[0]} == dict(expected)


def test_tokens_that_a_configuration_names_stay() -> None:
    tokenizer = wordpiece(["a", "##a", "aa"])
    assert 6 not in read_vocabulary(tokenizer).required
    assert 6 in read_vocabulary(tokenizer, [6, 999]).required
    assert 999 not in read_vocabulary(tokenizer, [6, 999]).required


def test_dropping_what_must_stay_is_refused() -> None:
    tokenizer = byte_pair_encoding("ab", [("a", "b")])
    vocabulary = read_vocabulary(tokenizer)
    with pytest.raises(UnsupportedError, match="1 tokens that must stay are not kept, first 'b'"):
        trim_tokenizer(tokenizer, vocabulary, [0, 1, 2, 3, 4, 6])


def test_other_kinds_of_tokenizer_are_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UnsupportedError, match="kind 'WordLevel', expected one of WordPiece, BPE, Unigram"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
