"""How far a training run is: numbers only, so that a checkpoint can hold them as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from edgekit.distillation.config import BestBy


@dataclass(frozen=True)
class Score:
    """What an evaluation found."""

    accuracy: float | None
    """Share of rows with the right label, 0 to 1; None for a language model, which is judged by cross-entropy alone."""
    cross_entropy: float
    """Mean negative log likelihood of the right label or token, nats."""
    divergence: float | None = None
    """Mean KL(teacher || student) of a classifier's rows, nats; None without a teacher."""

    def better_than(self, other: Score | None, best_by: BestBy) -> bool:
        """Returns True when this is better by `best_by`.

        By accuracy, equally many rows right go by cross-entropy; so does the divergence of scores without a teacher.
        """
        if other is None:
            return True
        if best_by == "divergence" and self.divergence is not None and other.divergence is not None:
            return self.divergence < other.divergence
        if best_by != "accuracy":
            return self.cross_entropy < other.cross_entropy
        return (self.accuracy or 0.0, -self.cross_entropy) > (other.accuracy or 0.0, -other.cross_entropy)

    def values(self) -> dict[str, float]:
        """Returns the numbers by name, as they are told."""
        if self.accuracy is None:
            return {"cross_entropy": self.cross_entropy, "perplexity": math.exp(self.cross_entropy)}
        found = {"accuracy": self.accuracy, "cross_entropy": self.cross_entropy}
        return found if self.divergence is None else found | {"divergence": self.divergence}


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, and the weights it was of."""

    step: int
    score: Score
    weights: dict[str, Tensor]
    """Name to a copy, on the CPU."""


@dataclass(frozen=True)
class Progress:
    """The state of a run between two steps; replaced as a whole, so an interrupt never sees half a change."""

    step: int = 0
    """Optimizer steps done."""
    evaluated_step: int = 0
    """Step after which the last evaluation was."""
    evaluations_since_best: int = 0
    best: Best | None = None

    def evaluated(self, score: Score, weights: dict[str, Tensor], best_by: BestBy) -> Progress:
        """Returns the state after an evaluation; `weights` are kept when it is the best by `best_by`."""
        if score.better_than(self.best.score if self.best else None, best_by):
            best = Best(self.step, score, weights)
            return replace(self, evaluated_step=self.step, evaluations_since_best=0, best=best)
        count = self.evaluations_since_best + 1
        return replace(self, evaluated_step=self.step, evaluations_since_best=count)
