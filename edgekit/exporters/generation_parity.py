"""How far the logits and the greedy text of one session are from another's, token by token.

It knows nothing of runtimes, files or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.generation import GenerationSession

Logits = NDArray[np.float32]


class TokenDifferences:
    """Differences of logits, gathered text by text; only numbers for each token are kept."""

    def __init__(self) -> None:
        """Starts with no tokens."""
        self._divergences: list[NDArray[np.float64]] = []
        self._largest: list[NDArray[np.float64]] = []
        self._means: list[NDArray[np.float64]] = []
        self._agreeing: list[NDArray[np.bool_]] = []

    def add(self, expected: Logits, found: Logits) -> None:
        """Counts the tokens of one text: both (T, V)."""
        self._divergences.append(divergence(expected, found))
        error = np.abs(found.astype(np.float64) - expected)
        self._largest.append(error.max(axis=1))
        self._means.append(error.mean(axis=1))
        self._agreeing.append(expected.argmax(axis=1) == found.argmax(axis=1))

    @property
    def tokens(self) -> int:
        """Tokens compared."""
        return sum(len(part) for part in self._means)

    @property
    def largest(self) -> float:
        """Largest absolute difference of any logit."""
        return float(np.concatenate(self._largest).max())

    @property
    def mean(self) -> float:
        """Mean absolute difference over all logits."""
        return float(np.concatenate(self._means).mean())

    @property
    def divergence(self) -> float:
        """Mean KL(expected || found), nats a token."""
        return float(np.concatenate(self._divergences).mean())

    @property
    def divergence_p99(self) -> float:
        """99th percentile over tokens of the same."""
        return float(np.quantile(np.concatenate(self._divergences), 0.99))

    @property
    def agreement(self) -> float:
        """Share of tokens for which both hold the same token most likely."""
        return float(np.concatenate(self._agreeing).mean())


@dataclass
class GreedyRuns:
    """How long two sessions write the same, prompt by prompt."""

    tokens: int
    """Tokens written after each prompt."""
    equal: list[int] = field(default_factory=list)
    """For each prompt: equal tokens before the first that differs."""

    @property
    def mean_equal(self) -> float:
        """Mean of `equal`; 0 without prompts."""
        return float(np.mean(self.equal)) if self.equal else 0.0

    @property
    def share_equal(self) -> float:
        """Share of the prompts after which all tokens are equal; 1 without prompts."""
        return float(np.mean([count == self.tokens for count in self.equal])) if self.equal else 1.0


def divergence(expected: Logits, found: Logits) -> NDArray[np.float64]:
    """Returns KL(softmax(expected) || softmax(found)) of each row, nats, (T,) from (T, V); computed in float64.

    sum_v p_v (log p_v - log q_v), Kullback and Leibler, 1951; rounding may leave it some 1e-16 below zero.
    """
    log_p, log_q = log_softmax(expected), log_softmax(found)
    total: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return total


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Returns log probabilities, (T, V) float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def write_greedily(session: GenerationSession, prompt: Sequence[int], tokens: int) -> list[int]:
    """Returns the `tokens` likeliest tokens one after another, after a reset and the prompt; ends are not heeded."""
    session.reset()
    logits = session.prefill(np.asarray(prompt, dtype=np.int64))
    written = [int(logits.argmax())]
    while len(written) < tokens:
        written.append(int(session.step(written[-1]).argmax()))
    return written


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many tokens are equal before the first that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))
