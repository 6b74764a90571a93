"""Sentences: what belongs together, and that no text is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.data.sentences import SHORTEST, sentences

LONG = "The plot is thin and the jokes are old"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{LONG}. {LONG}!", [f"{LONG}.", f"{LONG}!"]),
        (f"{LONG}<br /><br />{LONG}", [LONG, LONG]),
        (f"{LONG}\n\n{LONG}", [LONG, LONG]),
        (f'He said: "{LONG}." {LONG}.', [f'He said: "{LONG}."', f"{LONG}."]),
        (f"{LONG} (really.) {LONG}.", [f"{LONG} (really.)", f"{LONG}."]),
        (f"{LONG}... and {LONG}.", [f"{LONG}... and {LONG}."]),
        (f"It scored 3.5 of 10 with us. {LONG}.", ["It scored 3.5 of 10 with us.", f"{LONG}."]),
        (f"Wow! {LONG}.", [f"Wow! {LONG}."]),
        (f"{LONG}. Wow!", [f"{LONG}. Wow!"]),
        ("剧情薄弱，笑话陈旧，演员们看起来都很疲惫。配乐也不能挽救这部电影的任何一个场景。", None),
        ("one text without any end", ["one text without any end"]),
        ("  ", []),
    ],
)
def test_examples(text, expected):
    found = sentences(text)
    assert found == (re.findall(r"[^。]+。", text) if expected is None else expected)


@given(
    st.lists(st.sampled_from(["Good. ", "bad", LONG, "! ", ". ", "\n", "<br>", "?", '"', ") ", "。", "A"])).map("".join)
)
def test_nothing_is_lost_and_short_pieces_join(text):
    found = sentences(text)
    assert re.sub(r"\s|<br>", "", text) == re.sub(r"\s", "", "".join(found))
    assert all(piece == piece.strip() and piece for piece in found)
    one_paragraph = not re.search(r"\n|<br>", text)
    assert all(len(piece.encode()) >= SHORTEST for piece in found) or len(found) == 1 or not one_paragraph
