import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.data.splitting import Rows, deduplicate, keys_of, stratify, text_key, without
from edgekit.errors import DataError

FRACTIONS = {"test": 0.2, "validation": 0.1, "train": 0.7}
NAMES = ["negative", "neutral", "positive"]

texts = st.lists(st.text(alphabet="ab \t\n", max_size=4), max_size=40)


@st.composite
def labelled(draw: st.DrawFn) -> Rows:
    found = draw(texts)
    return Rows(found, draw(st.lists(st.integers(0, 2), min_size=len(found), max_size=len(found))))


def test_deduplication_by_hand() -> None:
    rows = Rows(["a b", "c", " a\tb ", "d", "c", "d", "d", "A b"], [0, 1, 0, 0, 1, 1, 0, 0])
    kept, dropped = deduplicate(rows)
    assert (kept.texts, kept.labels) == (["a b", "c", "A b"], [0, 1, 0])
    assert (dropped.duplicates, dropped.conflicts) == (2, 3)


@given(labelled())
def test_deduplication_keeps_each_agreed_text_once_in_order(rows: Rows) -> None:
    kept, dropped = deduplicate(rows)
    assert rows.labels is not None
    assert kept.labels is not None
    labels_of: dict[str, set[int]] = {}
    for text, label in zip(rows.texts, rows.labels, strict=True):
        labels_of.setdefault(text_key(text), set()).add(label)
    agreed = [key for key, labels in labels_of.items() if len(labels) == 1]
    assert [text_key(text) for text in kept.texts] == sorted(agreed, key=[text_key(text) for text in rows.texts].index)
    assert all({label} == labels_of[text_key(text)] for text, label in zip(kept.texts, kept.labels, strict=True))
    assert len(kept) + dropped.duplicates + dropped.conflicts == len(rows)
    assert deduplicate(kept) == (kept, type(dropped)())


@given(texts, texts)
def test_what_must_not_be_seen_is_gone_and_nothing_else(found: list[str], unseen: list[str]) -> None:
    kept, count = without(Rows(found), keys_of(Rows(unseen)))
    assert not keys_of(kept) & keys_of(Rows(unseen))
    assert kept.texts == [text for text in found if text_key(text) not in {text_key(other) for other in unseen}]
    assert count == len(found) - len(kept)


@given(
    counts=st.lists(st.integers(3, 60), min_size=3, max_size=3),
    test=st.floats(0.01, 0.4),
    validation=st.floats(0.01, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_splits_are_a_stratified_partition(counts: list[int], test: float, validation: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    rows = Rows([f"text {index}" for index in range(len(labels))], labels)
    fractions = {"test": test, "validation": validation, "train": 1 - test - validation}
    parts = stratify(rows, fractions, NAMES, seed)
    assert list(parts) == list(fractions)
    pairs = [pair for part in parts.values() for pair in zip(part.texts, part.labels or [], strict=True)]
    assert sorted(pairs) == sorted(zip(rows.texts, labels, strict=True))
    for label, count in enumerate(counts):
        for name, fraction in fractions.items():
            found = Counter(parts[name].labels or [])[label]
            assert found >= 1
            # Rounding moves a split by half a row, and the last one by half a row for each of the others.
            assert (
                abs(found - fraction * count) <= (1 if name == "train" else 0.5) or count * min(fractions.values()) < 1
            )
    assert stratify(rows, fractions, NAMES, seed) == parts


def test_the_seed_decides_and_sorted_data_is_shuffled() -> None:
    rows = Rows([str(index) for index in range(300)], [index // 100 for index in range(300)])
    parts = stratify(rows, FRACTIONS, NAMES, 0)
    assert {name: len(part) for name, part in parts.items()} == {"test": 60, "validation": 30, "train": 210}
    assert parts["train"].texts != stratify(rows, FRACTIONS, NAMES, 1)["train"].texts
    labels = parts["train"].labels
    assert labels is not None
    changes = sum(one != other for one, other in itertools.pairwise(labels))
    assert changes > 100


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 9, "found one class only: all 9 rows are 'neutral'; .*sorted by label"),
        ([0, 2] * 9, "found no row with the label 'neutral'; expected rows of 'negative', 'neutral', 'positive'"),
        ([0, 1, 2, 2] * 2, "too few rows with the label 'negative': 2; expected at least 3, one for each split"),
    ],
)
def test_rows_that_cannot_be_divided_say_why(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stratify(Rows([str(index) for index in range(len(labels))], labels), FRACTIONS, NAMES, 0)
