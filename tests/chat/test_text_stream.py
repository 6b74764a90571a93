"""Text while tokens come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.chat.text_stream import TextStream
from tests.pico_decoders import pico_byte_tokenizer

TOKENIZER = pico_byte_tokenizer()
BACKEND = TOKENIZER.backend_tokenizer


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_character_comes_whole_and_none_is_lost(text):
    stream = TextStream(BACKEND)
    pieces = [stream.push(token) for token in BACKEND.encode(text, add_special_tokens=False).ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text == stream.text


@given(st.lists(st.integers(4, len(TOKENIZER) - 1), max_size=40))
def test_any_tokens_give_the_text_that_decoding_all_of_them_gives(ids):
    stream = TextStream(BACKEND)
    shown = "".join(stream.push(token) for token in ids)
    assert shown + stream.finish() == BACKEND.decode(ids)


def test_a_character_of_four_bytes_waits_for_the_last():
    ids = BACKEND.encode("\N{GRINNING FACE}!", add_special_tokens=False).ids
    assert len(ids) == 5
    stream = TextStream(BACKEND)
    assert [stream.push(token) for token in ids] == ["", "", "", "\N{GRINNING FACE}", "!"]
    assert stream.finish() == ""


def test_half_a_character_is_shown_at_the_end():
    ids = BACKEND.encode("a\N{GRINNING FACE}", add_special_tokens=False).ids
    stream = TextStream(BACKEND)
    assert "".join(stream.push(token) for token in ids[:-2]) == "a"
    assert set(stream.finish()) == {"\ufffd"}


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>"])
def test_special_tokens_are_not_shown(token):
    stream = TextStream(BACKEND)
    assert stream.push(TOKENIZER.convert_tokens_to_ids(token)) + stream.finish() == ""
