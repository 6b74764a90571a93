"""Deduplicates labelled text and divides it: plain functions over lists, each row in exactly one split or dropped.

Two texts are the same when they differ in white space alone. Where rows come from is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.errors import DataError


@dataclass(frozen=True)
class Rows:
    """Texts, their labels and where they come from, in step."""

    texts: list[str]
    """One text a row."""
    labels: list[int] | None = None
    """One label index a row; None for unlabelled text."""
    places: list[str] | None = None
    """Where each row is: `reviews.csv, line 12`; None where nobody knows."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Rows:
        """Returns the rows at `indices`, in that order."""
        labels = None if self.labels is None else [self.labels[index] for index in indices]
        places = None if self.places is None else [self.places[index] for index in indices]
        return Rows([self.texts[index] for index in indices], labels, places)


@dataclass
class Dropped:
    """How many rows were left out, and why."""

    duplicates: int = 0
    """A row with the same text and label came before."""
    conflicts: int = 0
    """The same text carries two labels: every row with it is left out."""
    leaks: dict[str, int] = field(default_factory=dict)
    """Split to its rows whose text is also in a split that must not be seen."""


def text_key(text: str) -> str:
    """Returns what makes two texts the same: the words, with one space between."""
    return " ".join(text.split())


def deduplicate(rows: Rows) -> tuple[Rows, Dropped]:
    """Returns `rows` with each text once, and what was dropped; texts that carry two labels go altogether."""
    keys = [text_key(text) for text in rows.texts]
    labels_of: dict[str, set[int]] = {}
    for index, key in enumerate(keys):
        labels_of.setdefault(key, set()).add(-1 if rows.labels is None else rows.labels[index])
    dropped = Dropped()
    kept: list[int] = []
    seen: set[str] = set()
    for index, key in enumerate(keys):
        if len(labels_of[key]) > 1:
            dropped.conflicts += 1
        elif key in seen:
            dropped.duplicates += 1
        else:
            seen.add(key)
            kept.append(index)
    return rows.take(kept), dropped


def without(rows: Rows, unseen: set[str]) -> tuple[Rows, int]:
    """Returns the rows whose text is not among the keys `unseen`, and how many were dropped."""
    kept = [index for index, text in enumerate(rows.texts) if text_key(text) not in unseen]
    return rows.take(kept), len(rows) - len(kept)


def keys_of(*parts: Rows) -> set[str]:
    """Returns the keys of all texts of `parts`."""
    return {text_key(text) for part in parts for text in part.texts}


def stratify(rows: Rows, fractions: dict[str, float], label_names: Sequence[str], seed: int) -> dict[str, Rows]:
    """Returns `rows` divided into the named splits, each with the labels in the same proportions.

    `fractions` are of the whole and add up to 1. Each split gets `fraction * n` rows of every label, rounded, and at
    least one; the last split gets what remains. A partition: every row is in exactly one split. Rows of a split are
    shuffled.

    Raises:
        DataError: one class only, a label without rows, or too few rows of a label to be in every split.
    """
    assert rows.labels is not None
    check_classes(rows.labels, label_names, at_least=len(fractions))
    generator = np.random.default_rng(seed)
    labels = np.asarray(rows.labels)
    indices: dict[str, list[int]] = {name: [] for name in fractions}
    *first, last = fractions
    for label in range(len(label_names)):
        shuffled = generator.permutation(np.flatnonzero(labels == label)).tolist()
        start, remaining = 0, len(shuffled)
        for position, name in enumerate(first):
            # Every split that is still to come needs a row.
            most = remaining - (len(first) - position)
            count = min(max(1, round(fractions[name] * len(shuffled))), most)
            indices[name].extend(shuffled[start : start + count])
            start, remaining = start + count, remaining - count
        indices[last].extend(shuffled[start:])
    return {name: rows.take(generator.permutation(found).tolist()) for name, found in indices.items()}


def check_classes(labels: Sequence[int], label_names: Sequence[str], *, at_least: int) -> None:
    """Checks that every label has `at_least` rows.

    Raises:
        DataError: one class only, a label without rows, or too few rows of a label.
    """
    counts = Counter(labels)
    if len(counts) == 1:
        only = label_names[next(iter(counts))]
        raise DataError(
            f"found one class only: all {len(labels)} rows are '{only}'; expected rows of {_join(label_names)}. "
            "Check the label column and `where`: data is often sorted by label."
        )
    for index, name in enumerate(label_names):
        if counts[index] == 0:
            raise DataError(f"found no row with the label '{name}'; expected rows of {_join(label_names)}.")
        if counts[index] < at_least:
            raise DataError(
                f"found too few rows with the label '{name}': {counts[index]}; expected at least {at_least}, "
                "one for each split."
            )


def _join(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
