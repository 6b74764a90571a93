"""The losses of a language model over a large vocabulary, from hidden states: no (tokens, V) tensor is ever held.

    losses = vocabulary_losses(hidden, find_head(student), targets, objective)
    total = losses.total(objective)

Divergences are explained in `divergences.py`, what may stand for the teacher in `vocabulary_targets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekit.distillation.chunked_loss import ChunkedLoss, Work
from edgekit.distillation.divergences import Divergence
from edgekit.distillation.losses import IGNORED
from edgekit.distillation.token_rows import RowBuffers
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_targets import SampledTargets, Teacher, TeacherStates
from edgekit.errors import ModelError, UnsupportedError

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class VocabularyObjective:
    """What is minimised: `soft_targets * sum of divergences + cross_entropy * sum of cross-entropies`."""

    divergence: Divergence = field(default_factory=Divergence)
    soft_targets: float = 1.0
    """Coefficient of the divergences' sum: alpha / (weight that counts in the whole step); 0: not computed."""
    cross_entropy: float = 0.0
    """Coefficient of the cross-entropies' sum: (1 - alpha) / (labels in the whole step); 0: not computed."""
    chunk_tokens: int = 256
    """Tokens whose logits are held at once; changes memory and time, and nothing else."""
    compiled: bool = False
    """Let torch.compile make a few kernels of the losses: on a GPU much faster; changes time and rounding alone."""


@dataclass(frozen=True)
class TokenTargets:
    """What N tokens are to learn; each row belongs to the same row of the hidden states."""

    labels: Tensor | None = None
    """(N), int64: the token that follows; -100 where it does not count."""
    teacher: Teacher | None = None
    divergence_weights: Tensor | None = None
    """(N), any dtype, at least 0: how much each row's divergence counts; 0 for padding; none: 1."""
    cross_entropy_weights: Tensor | None = None
    """(N), any dtype, at least 0; rows whose label is -100 count 0 anyway; none: 1."""


@dataclass(frozen=True)
class VocabularyLosses:
    """What was found; scalars and rows are float32, or float64 where the hidden states are."""

    sums: dict[str, Tensor]
    """`soft_targets` and `cross_entropy` to the weighted sum over tokens, with gradients: of those that were computed.

    Multiplied by the objective's two coefficients, or by one multiple of both, and nothing else: backward checks it."""
    counts: dict[str, Tensor]
    """The same names to the sum of the weights."""
    rows: dict[str, Tensor]
    """The same names to each token's loss, (N), not weighted and without a gradient; 0 where it does not count."""

    def total(self, objective: VocabularyObjective) -> Tensor:
        """Returns the sums times their coefficients: what to call `backward` on."""
        coefficients = {"soft_targets": objective.soft_targets, "cross_entropy": objective.cross_entropy}
        return torch.stack([value * coefficients[name] for name, value in self.sums.items()]).sum()


def vocabulary_losses(
    hidden: Tensor,
    head: VocabularyHead,
    targets: TokenTargets,
    objective: VocabularyObjective,
    buffers: RowBuffers | None = None,
) -> VocabularyLosses:
    """Returns divergence and cross-entropy of N tokens, with gradients for hidden states, head and its bias.

    Products run in the dtype of `hidden`, also under autocast; softmax, losses and the sum of the head's gradient over
    chunks in float32, or in float64 where `hidden` is. Rows that count for nothing may hold anything, NaN included.
    Without gradients (`torch.no_grad()`) only the losses are computed.

    Args:
        hidden: (N, H), float32, float64 or bfloat16: the student's last hidden states, after its final norm.
        head: the student's, (V, H); its weight may be tied to the embedding.
        targets: what the rows are to learn.
        objective: divergence, coefficients and chunk size.
        buffers: of V columns, for a caller that computes losses again and again; none: new ones.

    Raises:
        ModelError: the teacher's vocabulary has another size than the student's.
        UnsupportedError: the dtype is another one, or a divergence other than forward KL is asked of samples.
        ValueError: shapes do not fit, a label is not a token, or there is nothing to compute.
    """
    names = _names(targets, objective)
    _check(hidden, head, targets, objective, names)
    weights = _weights(hidden, targets, names)
    counted = torch.stack(list(weights.values())).any(dim=0).nonzero()[:, 0]
    every = len(counted) == len(hidden)
    labels = targets.labels if "cross_entropy" in names else None
    teacher = targets.teacher if "soft_targets" in names else None
    work = Work(
        head=head,
        teacher=teacher if teacher is None or every else teacher.rows(counted),
        labels=labels if labels is None or every else labels[counted],
        divergence_weights=weights["soft_targets"][counted],
        cross_entropy_weights=weights["cross_entropy"][counted],
        divergence=objective.divergence,
        coefficients=(
            objective.soft_targets if "soft_targets" in names else 0.0,
            objective.cross_entropy if "cross_entropy" in names else 0.0,
        ),
        chunk_tokens=objective.chunk_tokens,
        needs_gradient=torch.is_grad_enabled(),
        buffers=RowBuffers(head.size, hidden.device) if buffers is None else buffers,
        compiled=objective.compiled,
    )
    found = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden if every else hidden[counted], head.weight, head.bias, work
    )
    results = {name: (found[index], found[2 + index]) for index, name in enumerate(_NAMES) if name in names}
    rows = {
        name: torch.zeros_like(weights[name]).index_copy_(0, counted, losses).mul_(weights[name] != 0)
        for name, (_, losses) in results.items()
    }
    sums = {name: total for name, (total, _) in results.items()}
    return VocabularyLosses(sums, {name: weights[name].sum() for name in results}, rows)


_NAMES = ("soft_targets", "cross_entropy")


def _names(targets: TokenTargets, objective: VocabularyObjective) -> set[str]:
    """Returns the names of the losses to compute."""
    found = set()
    if objective.soft_targets != 0 and targets.teacher is not None:
        found.add("soft_targets")
    if objective.cross_entropy != 0 and targets.labels is not None:
        found.add("cross_entropy")
    if not found:
        raise ValueError("found neither a teacher nor labels with a coefficient above 0, expected at least one.")
    return found


def _weights(hidden: Tensor, targets: TokenTargets, names: set[str]) -> dict[str, Tensor]:
    """Returns each loss's weight at every token, (N), in the dtype of the losses; 0 for a loss that is not computed."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    found = {}
    for name, given in zip(_NAMES, (targets.divergence_weights, targets.cross_entropy_weights), strict=True):
        if name in names and given is not None:
            found[name] = given.to(hidden.device, wide)
        else:
            found[name] = torch.full((len(hidden),), float(name in names), dtype=wide, device=hidden.device)
    if "cross_entropy" in names and targets.labels is not None:
        found["cross_entropy"] = found["cross_entropy"] * (targets.labels != IGNORED)
    return found


def _check(
    hidden: Tensor, head: VocabularyHead, targets: TokenTargets, objective: VocabularyObjective, names: set[str]
) -> None:
    if hidden.dtype not in _DTYPES:
        raise UnsupportedError(f"hidden states: found {hidden.dtype}, expected float32, float64 or bfloat16.")
    if hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(f"hidden states: found shape {tuple(hidden.shape)}, expected (N, {head.weight.shape[1]}).")
    if objective.chunk_tokens < 1:
        raise ValueError(f"chunk_tokens: found {objective.chunk_tokens}, expected at least 1.")
    count = len(hidden)
    for name in ("labels", "divergence_weights", "cross_entropy_weights"):
        found: Tensor | None = getattr(targets, name)
        if found is not None and found.shape != (count,):
            raise ValueError(f"{name}: found shape {tuple(found.shape)}, expected ({count},).")
    labels = targets.labels
    if "cross_entropy" in names and labels is not None and count:
        wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= head.size)]
        if len(wrong):
            raise ValueError(
                f"labels: found {int(wrong[0])}, expected {IGNORED} or a token id from 0 to {head.size - 1}."
            )
    if "soft_targets" in names and targets.teacher is not None:
        _check_teacher(targets.teacher, count, head.size, objective.divergence)


def _check_teacher(teacher: Teacher, count: int, vocabulary: int, divergence: Divergence) -> None:
    rows = len(teacher.hidden) if isinstance(teacher, TeacherStates) else len(teacher.token_ids)
    if rows != count:
        raise ValueError(f"teacher: found {rows} rows, expected {count}, one a token of the student.")
    if isinstance(teacher, TeacherStates):
        if teacher.head.size != vocabulary:
            raise ModelError(
                f"vocabulary: found {teacher.head.size} tokens in the teacher's head and {vocabulary} in the "
                "student's, expected equally many in the same order. Choose the teacher's with VocabularyHead.select."
            )
        return
    if count and int(teacher.token_ids.max()) >= vocabulary:
        raise ModelError(
            f"teacher signal: found the token id {int(teacher.token_ids.max())}, expected ids below {vocabulary}, the "
            "student's vocabulary. Capture the signal for this student's vocabulary."
        )
    if isinstance(teacher, SampledTargets) and divergence.plain != "forward_kl":
        raise UnsupportedError(
            f"divergence {divergence.kind} of sampled teacher outputs: only forward_kl is unbiased from samples. "
            "Choose forward_kl, or capture the top-k signal."
        )
