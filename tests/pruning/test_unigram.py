import json

import pytest

from edgekit.errors import UnsupportedError
from edgekit.pruning.tokenizer_model import JsonObject
from edgekit.pruning.unigram import read_unigram
from tests.pruning.tokenizers_in_code import SPECIALS, unigram


def model_of(*pieces: str) -> JsonObject:
    scored = [(piece, -1.0 - index) for index, piece in enumerate(pieces)]
    model: JsonObject = json.loads(unigram(scored).backend_tokenizer.to_str())["model"]
    return model


def test_single_characters_bytes_and_unknown_must_stay() -> None:
    read = read_unigram(model_of("▁", "a", "b", "▁ab", "<0x0A>"), frozenset(SPECIALS))
    required = {token for token, token_id in read.tokens.items() if token_id in read.required}
    assert required == {"[UNK]", "▁", "a", "b", "<0x0A>"}


def test_kept_pieces_keep_order_and_score_and_unknown_gets_its_new_id() -> None:
    read = read_unigram({**model_of("▁", "a", "▁a", "aa"), "unk_id": 3}, frozenset(SPECIALS))
    cut = read.cut({2: 0, 3: 1, 4: 2, 5: 3, 7: 4})
    assert cut["vocab"] == [["[CLS]", 0.0], ["[SEP]", 0.0], ["▁", -1.0], ["a", -2.0], ["aa", -4.0]]
    assert cut["unk_id"] == 1


def test_a_piece_that_could_leave_a_character_alone_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="token '▁ax' holds 'x', which has no token of its own"):
        read_unigram(model_of("▁", "a", "▁ax"), frozenset(SPECIALS))
