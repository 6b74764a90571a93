import json
from pathlib import Path

import pytest

from edgekit.errors import ModelError
from edgekit.models.tokenizer import (
    NASTY_TEXTS,
    load_bare_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_vectors,
)
from tests.pico import ARCHITECTURES, pico_texts, pico_tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_tokenizer_loads_equal_and_its_file_alone_gives_the_same_ids(tmp_path: Path, architecture: str) -> None:
    tokenizer = pico_tokenizer(architecture)
    save_tokenizer(tokenizer, tmp_path)
    texts = [*NASTY_TEXTS, *pico_texts(20)[0]]
    expected = tokenizer_vectors(tokenizer, texts, 32)
    assert tokenizer_vectors(load_tokenizer(tmp_path), texts, 32) == expected
    assert tokenizer_vectors(load_bare_tokenizer(tmp_path / "tokenizer.json"), texts, 32) == expected
    assert {len(vector.input_ids) for vector in expected} >= {2, 32}


def test_the_saved_file_neither_pads_nor_truncates_though_the_source_does(tmp_path: Path) -> None:
    tokenizer = pico_tokenizer("bert")
    tokenizer.save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["padding"] = {
        "strategy": {"Fixed": 128},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    content["truncation"] = {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    file.write_text(json.dumps(content), encoding="utf-8")

    loaded = load_tokenizer(tmp_path / "source")
    save_tokenizer(loaded, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"] is None
    assert saved["truncation"] is None
    assert len(loaded("a good film")["input_ids"]) == 5
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"max_length", "stride", "truncation_strategy", "name_or_path"} & set(settings)


def test_use_before_saving_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    fresh, used = pico_tokenizer("roberta"), pico_tokenizer("roberta")
    used(["a good film", "bad"], padding="max_length", truncation=True, max_length=16)
    save_tokenizer(fresh, tmp_path / "fresh")
    save_tokenizer(used, tmp_path / "used")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "used" / name).read_bytes()


def test_a_class_that_would_rebuild_another_tokenizer_is_replaced_by_the_generic_one(tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = pico_tokenizer("bert")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded("GOOD")["input_ids"] == tokenizer("GOOD")["input_ids"] != loaded("good")["input_ids"]
    assert (
        json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )


def test_vectors_hold_special_tokens_and_stop_at_the_length() -> None:
    tokenizer = pico_tokenizer("bert")
    good, empty = tokenizer_vectors(tokenizer, ["a good good good film", ""], 5)
    assert tokenizer.convert_ids_to_tokens(good.input_ids) == ["[CLS]", "a", "good", "good", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(empty.input_ids) == ["[CLS]", "[SEP]"]


def test_the_probe_texts_cover_what_tokenizers_disagree_on() -> None:
    whole = "".join(NASTY_TEXTS)
    for character in ("\u200d", "\u0301", "\x00", "\u202e", "\u4e2d", "\u0645", "\ufe0f", "\x1b", "\U00020000"):
        assert character in whole
    assert "" in NASTY_TEXTS
    assert any(text and not text.strip() for text in NASTY_TEXTS)
    assert max(len(text.split()) for text in NASTY_TEXTS) > 512
    assert len(set(NASTY_TEXTS)) == len(NASTY_TEXTS)


def test_a_directory_without_a_tokenizer_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"found no tokenizer; expected one of tokenizer\.json, vocab\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", encoding="utf-8")
    with pytest.raises(ModelError, match="its tokenizer holds special tokens only"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer could not be loaded .*Expected tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_file_alone_is_enough(tmp_path: Path) -> None:
    tokenizer = pico_tokenizer("bert")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    assert tokenizer_vectors(load_tokenizer(tmp_path), NASTY_TEXTS, 32) == tokenizer_vectors(tokenizer, NASTY_TEXTS, 32)


def test_a_missing_and_a_damaged_bare_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: missing"):
        load_bare_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"', encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        load_bare_tokenizer(tmp_path / "tokenizer.json")
