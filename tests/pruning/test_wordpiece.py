import json

import pytest

from edgekit.errors import UnsupportedError
from edgekit.pruning.tokenizer_model import JsonObject
from edgekit.pruning.wordpiece import read_wordpiece
from tests.pruning.tokenizers_in_code import SPECIALS, wordpiece


def model_of(*tokens: str) -> JsonObject:
    model: JsonObject = json.loads(wordpiece(tokens).backend_tokenizer.to_str())["model"]
    return model


def test_single_characters_their_continuations_and_unknown_must_stay() -> None:
    read = read_wordpiece(model_of("a", "##a", "aa", "##aa", "##", "#", "###"), frozenset(SPECIALS))
    required = {token for token, token_id in read.tokens.items() if token_id in read.required}
    assert required == {*SPECIALS, "a", "##a", "#", "###"}


def test_a_token_with_a_first_character_that_has_no_token_must_stay() -> None:
    read = read_wordpiece(model_of("##a", "##b", "xab", "a", "ab"), frozenset(SPECIALS))
    assert read.tokens["xab"] in read.required
    assert read.tokens["ab"] not in read.required


def test_a_continuation_that_could_leave_a_character_alone_is_refused() -> None:
    # "abcx" is ab ##cx; without ab it would be a ##bc and then nothing for x.
    tokens = ["a", "##b", "##c", "ab", "##bc", "##cx"]
    assert wordpiece(tokens).tokenize("abcx") == ["ab", "##cx"]
    assert wordpiece([token for token in tokens if token != "ab"]).tokenize("abcx") == ["[UNK]"]
    with pytest.raises(UnsupportedError, match="there is a token '##cx' and no token '##x'"):
        read_wordpiece(model_of(*tokens), frozenset(SPECIALS))
    with pytest.raises(UnsupportedError, match="there is a token '##xx' and no token '##x'"):
        read_wordpiece(model_of("x", "##xx"), frozenset(SPECIALS))
