"""What a student learns from at every token: the teacher itself, or what was kept of it.

Plain tensors of one row a token; where they come from is `token_signal.py`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgekit.distillation.vocabulary_head import VocabularyHead


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's last hidden states with its head: its whole distribution."""

    hidden: Tensor
    """(N, H_teacher), any float dtype; the products run in it. No gradient flows into it."""
    head: VocabularyHead
    """Of as many tokens as the student's head, in the same order: see `VocabularyHead.select`."""

    def rows(self, chosen: Tensor | slice) -> TeacherStates:
        """Returns the rows `chosen`, int64 indices or a slice."""
        return TeacherStates(self.hidden[chosen], self.head)


@dataclass(frozen=True)
class TopKTargets:
    """The K likeliest tokens and the mass of all others, of the distribution at the objective's temperature.

    The tail counts as one more class, so the divergence is that of the two distributions with their tails merged: exact
    in what is known, below the whole divergence (data processing inequality), and 0 only where the known tokens agree.
    Renormalizing over the K tokens instead would teach the student to leave no mass to the others.
    """

    token_ids: Tensor
    """(N, K), int64, distinct in a row, K below V."""
    log_probs: Tensor
    """(N, K), their log-probabilities."""
    log_tail: Tensor
    """(N), the log of the mass of all other tokens, finite."""

    def rows(self, chosen: Tensor | slice) -> TopKTargets:
        """Returns the rows `chosen`, int64 indices or a slice."""
        return TopKTargets(self.token_ids[chosen], self.log_probs[chosen], self.log_tail[chosen])


@dataclass(frozen=True)
class SampledTargets:
    """Tokens drawn from the teacher with weights whose expectation is its distribution at the objective's temperature.

    Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv:2503.16870. The
    gradient of forward KL is linear in the teacher's probabilities, so with these weights its expectation is exact. No
    other divergence has that property.
    """

    token_ids: Tensor
    """(N, S), int64; an id may come twice in a row."""
    weights: Tensor
    """(N, S), at least 0; 0 in slots that are not used."""
    entropy: Tensor
    """(N), the teacher's entropy in nats, exact: so the value is that of KL in expectation, not of cross-entropy."""

    def rows(self, chosen: Tensor | slice) -> SampledTargets:
        """Returns the rows `chosen`, int64 indices or a slice."""
        return SampledTargets(self.token_ids[chosen], self.weights[chosen], self.entropy[chosen])


Teacher = TeacherStates | TopKTargets | SampledTargets
