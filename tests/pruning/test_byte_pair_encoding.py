import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UnsupportedError
from edgekit.pruning.byte_pair_encoding import merged_from, read_byte_pair_encoding, split_symbols
from edgekit.pruning.tokenizer_model import JsonObject
from tests.pico import pico_tokenizer
from tests.pruning.tokenizers_in_code import SPECIALS, byte_pair_encoding


def test_a_token_needs_all_that_it_is_merged_from_and_no_other_way_to_it() -> None:
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2, ("ab", "c"): 3}
    assert merged_from("abc", ranks, ("", "")) == {"a", "b", "c", "bc", "abc"}
    assert merged_from("ab", ranks, ("", "")) == {"a", "b", "ab"}
    assert merged_from("a", ranks, ("", "")) == {"a"}
    assert merged_from("ca", ranks, ("", "")) == set()


@pytest.mark.parametrize(
    ("token", "marks", "symbols"),
    [
        ("abc", ("", ""), ["a", "b", "c"]),
        ("abc</w>", ("", "</w>"), ["a", "b", "c</w>"]),
        ("a</w>", ("", "</w>"), ["a</w>"]),
        ("##ab", ("##", ""), ["##a", "##b"]),
        ("ab", ("##", ""), ["a", "##b"]),
        ("</w>", ("", "</w>"), ["<", "/", "w", ">"]),
        ("", ("", ""), [""]),
    ],
)
def test_symbols_carry_the_marks_of_their_place(token: str, marks: tuple[str, str], symbols: list[str]) -> None:
    assert split_symbols(token, marks) == symbols


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=3)), max_size=12))
def test_a_token_is_reached_exactly_when_the_library_reaches_it(wanted: list[tuple[str, str]]) -> None:
    merges: list[tuple[str, str]] = []
    known = {"a", "b"}
    for left, right in wanted:
        if {left, right} <= known and (left, right) not in merges:
            merges.append((left, right))
            known.add(left + right)
    tokenizer = byte_pair_encoding("ab", merges)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for token in known:
        reached = tokenizer.tokenize(token) == [token]
        assert bool(merged_from(token, ranks, ("", ""))) == reached


def test_every_byte_must_stay_and_merges_of_dropped_tokens_go() -> None:
    model: JsonObject = json.loads(pico_tokenizer("roberta").backend_tokenizer.to_str())["model"]
    read = read_byte_pair_encoding(model, frozenset())
    assert len(read.required) == 256  # the unknown token is an added one, and this model never gives it
    film = read.tokens["Ġmovie"]
    kept = sorted({*read.required, film, *read.parts(film)})
    cut = read.cut({old: new for new, old in enumerate(kept)})
    assert cut["merges"] == [["Ġ", "m"], ["Ġm", "o"], ["Ġmo", "v"], ["Ġmov", "i"], ["Ġmovi", "e"]]
    assert len(cut["vocab"]) == len(kept) == 256 + 5


def test_merges_written_as_one_string_are_read() -> None:
    model: JsonObject = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    assert read_byte_pair_encoding(model, frozenset()).parts(2) == {0, 1}


def test_a_word_that_is_looked_up_whole_stays_when_its_symbols_do_not_exist() -> None:
    model: JsonObject = {"type": "BPE", "vocab": {"a": 0, "xa": 1, "aa": 2}, "merges": [], "ignore_merges": True}
    assert read_byte_pair_encoding(model, frozenset()).required == {0, 1}


def test_byte_fallback_tokens_must_stay() -> None:
    model: JsonObject = {"type": "BPE", "vocab": {"a": 0, "<0x0A>": 1, "aa": 2}, "merges": [["a", "a"]]}
    assert read_byte_pair_encoding(model, frozenset()).required == {0, 1}


def test_random_merges_are_refused() -> None:
    tokenizer = byte_pair_encoding("ab", [("a", "b")], dropout=0.1)
    model: JsonObject = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    with pytest.raises(UnsupportedError, match=r"dropout 0\.1"):
        read_byte_pair_encoding(model, frozenset(SPECIALS))
