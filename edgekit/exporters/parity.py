"""Compares an exported file, run by its runtime, with the torch model it came from: logits and token ids.

Both get the very same batches of real text: single texts and several at once, of mixed lengths, padded and not. Where
activations are rounded to 8 bits, torch's modules round the same batch likewise; what is left is float noise, and what
a model makes of it: see `sensitivity.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, EnvironmentLacksError, ParityError
from edgekit.results import AnyParity, Emulation, Parity, TokenizerVector, Unverified

if TYPE_CHECKING:
    from edgekit.runtimes.protocol import MissingRuntime, Session

PARITY_FILE = "parity.json"

Logits = NDArray[np.float32]
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]

CLEARLY = 1e-3
"""A difference of logits that float noise alone does not make."""

_EXTRA_PADDING = 7
_SHOWN = 60


@dataclass(frozen=True)
class Thresholds:
    """What must hold; each limit itself is still good enough."""

    max_abs_diff: float
    mean_abs_diff: float
    label_agreement: float
    share_above_own: float

    def relaxed(self, own: Differences, factor: float) -> Thresholds:
        """Returns the differences allowed to an export of a model that differs from itself by `own`."""
        return replace(
            self,
            max_abs_diff=max(self.max_abs_diff, factor * own.largest),
            mean_abs_diff=max(self.mean_abs_diff, factor * own.mean),
        )


@dataclass(frozen=True)
class TokenizerCheck:
    """What two tokenizers made of the same texts."""

    texts: int
    """How many both encoded."""
    mismatches: list[str]
    """The texts with different ids."""


class Differences:
    """Differences of logits, gathered batch by batch."""

    def __init__(self) -> None:
        """Starts with no rows."""
        self._rows: list[NDArray[np.float64]] = []
        self._agreeing: list[NDArray[np.bool_]] = []

    def add(self, expected: Logits, found: Logits) -> None:
        """Counts one batch: both (B, C)."""
        self._rows.append(np.abs(found.astype(np.float64) - expected.astype(np.float64)))
        self._agreeing.append(found.argmax(axis=1) == expected.argmax(axis=1))

    @property
    def rows(self) -> int:
        """Rows compared, a text once for each batch size."""
        return sum(len(rows) for rows in self._rows)

    @property
    def finite(self) -> bool:
        """True when every logit of both sides is a number."""
        return all(bool(np.isfinite(rows).all()) for rows in self._rows)

    @property
    def largest(self) -> float:
        """Largest absolute difference of any logit."""
        return float(np.concatenate(self._rows).max())

    @property
    def mean(self) -> float:
        """Mean absolute difference over all logits."""
        return float(np.concatenate(self._rows).mean())

    @property
    def median(self) -> float:
        """Median over rows of the largest absolute difference in a row."""
        return float(np.median(np.concatenate(self._rows).max(axis=1)))

    def share_above(self, own: Differences) -> float:
        """Returns the share of rows that differ by more than `CLEARLY` and twice the row's difference in `own`.

        Which rows hit an edge is chance, alike for both: where p of the rows do, p (1 - p) <= 1/4 hit one here and not
        there. Finetuned MiniLM, 3 and 6 layers, 128 rows, 12 seeds: 0.04 to 0.20. A fault moves every row: 0.46 with
        one layer's scales 1 % too large, 0.70 with GELU's tanh form, 0.72 with another epsilon, 0.98 with the rows of
        one weight in another order.
        """
        mine, others = (np.concatenate(each._rows).max(axis=1) for each in (self, own))
        return float((mine > np.maximum(CLEARLY, 2 * others)).mean())

    @property
    def agreeing(self) -> int:
        """Rows with the same label."""
        return int(np.concatenate(self._agreeing).sum())

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


@dataclass(frozen=True)
class Evidence:
    """All that a check gathered."""

    differences: Differences
    """Of the export from torch."""
    own: Differences | None
    """Of torch, slightly disturbed, from torch; None where nothing is rounded."""
    tokens: TokenizerCheck
    texts: int
    """Texts compared."""
    runtime: str
    """The runtime and its version."""
    model_digest: str
    """Digest of the export."""
    emulation: Emulation | None = None
    """The processor that it ran on, where it was emulated."""


def conclude(evidence: Evidence, thresholds: Thresholds) -> Parity:
    """Returns the result: what was found, and one sentence for each threshold that does not hold."""
    differences, own, tokens = evidence.differences, evidence.own, evidence.tokens
    failures = _failures(differences, own, thresholds)
    if tokens.mismatches:
        failures.append(
            f"{len(tokens.mismatches)} of {tokens.texts} texts are tokenized otherwise by tokenizer.json than by "
            f"transformers, first {_shorten(tokens.mismatches[0])}."
        )
    return Parity(
        runtime=evidence.runtime,
        emulation=evidence.emulation,
        rows=evidence.texts,
        max_abs_diff=_printable(differences.largest),
        mean_abs_diff=_printable(differences.mean),
        median_abs_diff=_printable(differences.median),
        own_max_abs_diff=None if own is None else _printable(own.largest),
        own_mean_abs_diff=None if own is None else _printable(own.mean),
        own_median_abs_diff=None if own is None else _printable(own.median),
        share_above_own=None if own is None else differences.share_above(own),
        label_agreement=differences.agreement,
        tokenizer_mismatches=len(tokens.mismatches),
        tokenizer_texts=tokens.texts,
        passed=not failures,
        failures=failures,
        model_digest=evidence.model_digest,
    )


def unverified(missing: MissingRuntime, model_digest: str) -> Unverified:
    """Returns the result for an export that was not compared, because the runtime that ships it is not here."""
    return Unverified(
        runtime=missing.name,
        reason=missing.reason,
        failures=[f"Unverified under {missing.name}: {missing.reason}"],
        model_digest=model_digest,
    )


def read_parity(artifact: Artifact) -> AnyParity:
    """Returns the result in a `parity` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    if artifact.kind != "parity":
        raise ArtifactError(f"{artifact.path}: found an artifact of kind '{artifact.kind}', expected 'parity'.")
    found: AnyParity = TypeAdapter(AnyParity).validate_json((artifact.path / PARITY_FILE).read_text(encoding="utf-8"))
    return found


def require_parity(parity: AnyParity) -> None:
    """Does nothing when the check passed.

    Raises:
        ParityError: it did not; lists every failure.
        EnvironmentLacksError: nothing was compared, for the runtime is not here.
    """
    if isinstance(parity, Unverified):
        raise EnvironmentLacksError(f"The export is unverified: {parity.reason}")
    if not parity.passed:
        listed = "\n".join(f"- {failure}" for failure in parity.failures)
        raise ParityError(f"The export, run by {parity.runtime}, differs from the model it was made from:\n{listed}")


def _failures(differences: Differences, own: Differences | None, thresholds: Thresholds) -> list[str]:
    failures = [] if differences.finite else ["The exported file or the model gives logits that are not finite."]
    found = {
        "max_abs_diff": (differences.largest, thresholds.max_abs_diff),
        "mean_abs_diff": (differences.mean, thresholds.mean_abs_diff),
    }
    for name, (value, limit) in found.items():
        # A comparison with NaN is false, so the good case is the one that is asked for.
        if not value <= limit:
            failures.append(f"{name} {value:.3g} is above {limit:.3g}.")
    if own is not None and differences.share_above(own) > thresholds.share_above_own:
        failures.append(
            f"share_above_own {differences.share_above(own):.3f} is above {thresholds.share_above_own:g}: so many rows "
            "differ by more than rounding explains."
        )
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
