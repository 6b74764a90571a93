import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.data.preprocessing import encode, length_buckets, pad
from edgekit.errors import DataError
from edgekit.models.tokenizer import NASTY_TEXTS
from tests.pico import ARCHITECTURES, pico_texts, pico_tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ids_are_those_of_transformers(architecture: str) -> None:
    tokenizer = pico_tokenizer(architecture)
    texts = [*NASTY_TEXTS, *pico_texts(30)[0]]
    expected = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in texts]
    assert encode(texts, tokenizer, 16, allow_empty=True) == expected
    assert encode(texts, tokenizer.backend_tokenizer, 16, allow_empty=True) == expected


def test_the_tokenizer_is_left_as_it_was_found() -> None:
    backend = pico_tokenizer("bert").backend_tokenizer
    backend.enable_truncation(7, stride=2)
    backend.enable_padding(length=9, pad_token="[PAD]")
    before = backend.to_str()
    assert [len(ids) for ids in encode(["a good film", "bad"], backend, 4)] == [4, 3]
    with pytest.raises(DataError):
        encode([" "], backend, 4)
    assert backend.to_str() == before


def test_a_text_without_tokens_is_named_by_row() -> None:
    texts = [*["good film"] * 1500, "\u200b\ufeff"]
    places = [f"a.csv, line {line}" for line in range(2, 2002)]
    with pytest.raises(DataError, match=r"^a\.csv, line 1502: found a text without any token"):
        encode(texts, pico_tokenizer("bert"), 16, where=places)
    with pytest.raises(DataError, match=r"split train, row 1500 \(counted from 0\): found a text without any token, "):
        encode(texts, pico_tokenizer("bert"), 16, where="split train")
    assert encode(texts, pico_tokenizer("bert"), 16, allow_empty=True)[-1] == [2, 3]


def test_unknown_and_literal_special_tokens_count_as_tokens() -> None:
    tokenizer = pico_tokenizer("bert")
    (unknown,) = encode(["\u4e2d"], tokenizer, 16)
    assert unknown == [2, 1, 3]


@given(
    lengths=st.lists(st.integers(1, 64), max_size=300),
    batch_size=st.integers(1, 17),
    seed=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
def test_batches_hold_every_row_once_and_repeat_for_a_seed(
    lengths: list[int], batch_size: int, seed: int | None
) -> None:
    def batches() -> list[list[int]]:
        return length_buckets(lengths, batch_size, None if seed is None else np.random.default_rng(seed))

    found = batches()
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in found)
    assert len(found) == -(-len(lengths) // batch_size)
    assert batches() == found


def test_batches_are_of_like_length_and_differ_between_draws() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 2000).tolist()
    generator = np.random.default_rng(1)
    first, second = length_buckets(lengths, 16, generator), length_buckets(lengths, 16, generator)
    assert first != second
    padding = sum(max(lengths[row] for row in batch) * len(batch) for batch in first) / sum(lengths)
    assert padding < 1.1
    assert first != sorted(first, key=lambda batch: lengths[batch[0]])
    ordered = length_buckets(lengths, 16)
    flat = [lengths[row] for batch in ordered for row in batch]
    assert flat == sorted(flat)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size: found 0, expected at least 1"):
        length_buckets([1], 0)


def test_padding_by_hand() -> None:
    input_ids, attention_mask = pad([[5, 6, 7], [8]], pad_id=1)
    assert input_ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert pad([[5]], pad_id=0, length=4)[0].tolist() == [[5, 0, 0, 0]]
    assert pad([], pad_id=0)[0].shape == (0, 0)
    with pytest.raises(ValueError, match="found a row of 3 tokens, expected at most 2"):
        pad([[1, 2, 3]], pad_id=0, length=2)


@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(0, 9))
def test_padding_loses_nothing(ids: list[list[int]], pad_id: int) -> None:
    input_ids, attention_mask = pad(ids, pad_id)
    assert [row[mask == 1].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)] == ids
    assert np.all(input_ids[attention_mask == 0] == pad_id)
    assert input_ids.shape == (len(ids), max(map(len, ids)))
