"""Compares an exported file, run by its runtime, with the torch model it came from: logits and token ids.

Both get the very same batches of real text: single texts and several at once, of mixed lengths, padded and not. Where
activations are rounded to 8 bits with one scale for the whole batch, torch's modules round the same batch likewise, so
what is left is float noise, and now and then a value on the edge between two codes that falls the other way.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, ParityError
from edgekit.results import Parity, TokenizerVector

if TYPE_CHECKING:
    from edgekit.runtimes.protocol import Session

PARITY_FILE = "parity.json"

Logits = NDArray[np.float32]
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]

_EXTRA_PADDING = 7
_SHOWN = 60


@dataclass(frozen=True)
class Thresholds:
    """What must hold; each limit itself is still good enough."""

    max_abs_diff: float
    mean_abs_diff: float
    label_agreement: float


@dataclass(frozen=True)
class TokenizerCheck:
    """What two tokenizers made of the same texts."""

    texts: int
    """How many both encoded."""
    mismatches: list[str]
    """The texts with different ids."""


@dataclass
class Differences:
    """Differences of logits, summed over batches."""

    largest: float = 0.0
    total: float = 0.0
    values: int = 0
    agreeing: int = 0
    rows: int = 0
    finite: bool = True

    def add(self, expected: Logits, found: Logits) -> None:
        """Counts one batch: both (B, C)."""
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        self.finite = self.finite and bool(np.isfinite(difference).all())
        self.largest = max(self.largest, float(difference.max()))
        self.total += float(difference.sum())
        self.values += difference.size
        self.agreeing += int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        self.rows += len(found)

    @property
    def mean(self) -> float:
        """Mean absolute difference over all logits."""
        return self.total / self.values

    @property
    def agreement(self) -> float:
        """Share of rows with the same label."""
        return self.agreeing / self.rows


def make_batches(
    ids: Sequence[list[int]], batch_sizes: Sequence[int], *, pad_id: int, max_length: int, seed: int
) -> list[Batch]:
    """Returns `input_ids` and `attention_mask`, each (B, T), that together hold every text once for each batch size.

    The order is drawn anew for each size, so lengths mix. Every second batch is as short as its longest text; the
    others are padded further, up to `max_length`, so that the mask is tested on single texts too.
    """
    from edgekit.data.preprocessing import pad

    generator = np.random.default_rng(seed)
    batches: list[Batch] = []
    for size in batch_sizes:
        order = generator.permutation(len(ids)).tolist()
        for count, start in enumerate(range(0, len(order), size)):
            rows = [ids[row] for row in order[start : start + size]]
            longest = max(len(row) for row in rows)
            padded = max(longest, min(longest + _EXTRA_PADDING, max_length))
            batches.append(pad(rows, pad_id, length=padded if count % 2 else longest))
    return batches


def run(session: Session, batch: Batch) -> Logits:
    """Returns the logits of a batch, float32 (B, C)."""
    from edgekit.runtimes.protocol import select_inputs

    logits: Logits = session.run(select_inputs(session.input_names, *batch))["logits"]
    return logits


def compare_vectors(expected: Sequence[TokenizerVector], found: Sequence[TokenizerVector]) -> TokenizerCheck:
    """Returns which texts have other token ids in `found` than in `expected`."""
    pairs = zip(expected, found, strict=True)
    return TokenizerCheck(len(expected), [mine.text for mine, other in pairs if mine.input_ids != other.input_ids])


def conclude(
    differences: Differences, thresholds: Thresholds, tokens: TokenizerCheck, *, runtime: str, texts: int
) -> Parity:
    """Returns the result: what was found, and one sentence for each threshold that does not hold."""
    failures = _failures(differences, thresholds)
    if tokens.mismatches:
        failures.append(
            f"{len(tokens.mismatches)} of {tokens.texts} texts are tokenized otherwise by tokenizer.json than by "
            f"transformers, first {_shorten(tokens.mismatches[0])}."
        )
    return Parity(
        runtime=runtime,
        rows=texts,
        max_abs_diff=_printable(differences.largest),
        mean_abs_diff=_printable(differences.mean),
        label_agreement=differences.agreement,
        tokenizer_mismatches=len(tokens.mismatches),
        tokenizer_texts=tokens.texts,
        passed=not failures,
        failures=failures,
    )


def read_parity(artifact: Artifact) -> Parity:
    """Returns the result in a `parity` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    if artifact.kind != "parity":
        raise ArtifactError(f"{artifact.path}: found an artifact of kind '{artifact.kind}', expected 'parity'.")
    return Parity.model_validate_json((artifact.path / PARITY_FILE).read_text(encoding="utf-8"))


def require_parity(parity: Parity) -> None:
    """Does nothing when the check passed.

    Raises:
        ParityError: it did not; lists every failure.
    """
    if not parity.passed:
        listed = "\n".join(f"- {failure}" for failure in parity.failures)
        raise ParityError(f"The export, run by {parity.runtime}, differs from the model it was made from:\n{listed}")


def _failures(differences: Differences, thresholds: Thresholds) -> list[str]:
    failures = [] if differences.finite else ["The exported file or the model gives logits that are not finite."]
    # A comparison with NaN is false, so the good case is the one that is asked for.
    if not differences.largest <= thresholds.max_abs_diff:
        failures.append(f"max_abs_diff {differences.largest:.3g} is above {thresholds.max_abs_diff:.3g}.")
    if not differences.mean <= thresholds.mean_abs_diff:
        failures.append(f"mean_abs_diff {differences.mean:.3g} is above {thresholds.mean_abs_diff:.3g}.")
    if differences.agreement < thresholds.label_agreement:
        disagreeing = differences.rows - differences.agreeing
        failures.append(
            f"label_agreement {differences.agreement:.4f} is below {thresholds.label_agreement:g}: "
            f"{disagreeing} of {differences.rows} rows get another label."
        )
    return failures


def _printable(value: float) -> float:
    """JSON knows neither infinity nor NaN."""
    return value if math.isfinite(value) else sys.float_info.max


def _shorten(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
