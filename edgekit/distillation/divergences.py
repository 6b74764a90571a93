"""Divergences between teacher and student, row by row, with their gradients written out by hand.

p is the teacher's distribution, q the student's, s the student's logits (divided by the temperature): q = softmax(s).
A divergence L with the derivatives g_i = dL/dq_i has the gradient dL/ds_i = q_i (g_i - sum_j q_j g_j).

| kind                | L                                                          | g_i                            |
|---------------------|------------------------------------------------------------|--------------------------------|
| `forward_kl`        | KL(p || q)                                                 | -p_i / q_i                     |
| `reverse_kl`        | KL(q || p)                                                 | log(q_i / p_i)                 |
| `jensen_shannon`    | b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q    | (1 - b) log(q_i / m_i)         |
| `skewed_kl`         | KL(p || m),  m = a p + (1 - a) q                           | -(1 - a) p_i / m_i             |
| `skewed_reverse_kl` | KL(q || m),  m = (1 - a) p + a q                           | log(q_i / m_i) - a q_i / m_i   |

Constants are left out of g: they cancel. Agarwal et al., "On-Policy Distillation of Language Models" (GKD),
arXiv:2306.13649, equation 1, for b; Ko et al., "DistiLLM", arXiv:2402.03898, equations 2 and 3, for a. As b goes to
0 or 1, `jensen_shannon` goes to 0 like b KL(p || q) and (1 - b) KL(q || p). So b = 0 and b = 1 are defined as those two
limits without the factor, forward and reverse KL, as TRL's GKDTrainer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

DivergenceKind = Literal["forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl"]


@dataclass(frozen=True)
class Divergence:
    """Which divergence, between distributions softened by which temperature."""

    kind: DivergenceKind = "forward_kl"
    """A row of the table above."""
    mixture: float = 0.5
    """b of `jensen_shannon`, 0 to 1; a of the skewed ones, at least 0 and below 1; the others do not look at it."""
    temperature: float = 1.0
    """T, above 0: divides both logits; the divergence is multiplied by T^2."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: the kind is unknown, or a number is out of its range.
        """
        if self.kind not in get_args(DivergenceKind):
            raise ValueError(f"kind: found {self.kind!r}, expected one of {', '.join(get_args(DivergenceKind))}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: found {self.temperature}, expected a number above 0.")
        if not 0 <= self.mixture <= 1 or (self.kind.startswith("skewed") and self.mixture == 1):
            expected = "0 <= mixture < 1" if self.kind.startswith("skewed") else "0 <= mixture <= 1"
            raise ValueError(f"mixture: found {self.mixture} for {self.kind}, expected {expected}.")

    @property
    def plain(self) -> DivergenceKind:
        """The kind after endpoints became the plain KL that they are."""
        if self.kind == "jensen_shannon" and self.mixture in (0, 1):
            return "reverse_kl" if self.mixture == 1 else "forward_kl"
        if self.kind.startswith("skewed") and self.mixture == 0:
            return "reverse_kl" if self.kind == "skewed_reverse_kl" else "forward_kl"
        return self.kind


class Softmax(NamedTuple):
    """A distribution of each of n rows over C classes, as what keeps most digits of it."""

    shifted: Tensor
    """(n, C), the logits less the row's largest: log-probabilities are `shifted - log(total)`."""
    probabilities: Tensor
    """(n, C), normalized by a division: exp of a rounded log-probability would be off by the same in a whole row."""
    total: Tensor
    """(n, 1), the sum of `exp(shifted)`."""


class Diverged(NamedTuple):
    """What `diverge` finds of n rows of C classes."""

    value: Tensor
    """(n), the divergence of each row, without T^2."""
    q: Tensor
    """(n, C), the student's probabilities."""
    gradient: Tensor
    """(n, C), dL/ds."""


def normalize(logits: Tensor, out: Tensor) -> Softmax:
    """Returns the softmax of (n, C) logits, which are overwritten, with its probabilities in `out`."""
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))
    weights = torch.exp(shifted, out=out)
    total = weights.sum(dim=-1, keepdim=True)
    return Softmax(shifted, weights.div_(total), total)


def diverge(student: Softmax, teacher: Softmax, divergence: Divergence) -> Diverged:
    """Returns the divergence of each row with its gradient, and allocates nothing of size (n, C).

    The four tensors of `student` and `teacher` are overwritten; two of them are `q` and `gradient` of the result. The
    temperature plays no part here.
    """
    kind, mixture = divergence.plain, divergence.mixture
    if kind == "forward_kl":
        return _forward_kl(student, teacher)
    if kind == "reverse_kl":
        return _reverse_kl(student, teacher)
    buffers = (student.shifted, teacher.shifted)
    if kind == "jensen_shannon":
        return _jensen_shannon(student.probabilities, teacher.probabilities, mixture, buffers)
    if kind == "skewed_kl":
        return _skewed_kl(student.probabilities, teacher.probabilities, mixture, buffers)
    return _skewed_reverse_kl(student.probabilities, teacher.probabilities, mixture, buffers)


def _forward_kl(student: Softmax, teacher: Softmax) -> Diverged:
    q, p = student.probabilities, teacher.probabilities
    value = _subtract_logs(teacher, student).mul_(p).sum(dim=-1)
    return Diverged(value, q, torch.sub(q, p, out=p))


def _reverse_kl(student: Softmax, teacher: Softmax) -> Diverged:
    q, ratio = student.probabilities, _subtract_logs(student, teacher)
    value = torch.mul(q, ratio, out=teacher.probabilities).sum(dim=-1)
    return Diverged(value, q, ratio.sub_(value[:, None]).mul_(q))


def _jensen_shannon(q: Tensor, p: Tensor, b: float, buffers: tuple[Tensor, Tensor]) -> Diverged:
    m = _mix(p, b, q, 1 - b, out=buffers[0])
    of_teacher = _log(torch.div(p, m, out=buffers[1]), out=buffers[1]).mul_(p).sum(dim=-1)
    q_over_m = _log(torch.div(q, m, out=buffers[1]), out=buffers[1])
    of_student = torch.mul(q, q_over_m, out=m).sum(dim=-1)
    gradient = q_over_m.sub_(of_student[:, None]).mul_(q).mul_(1 - b)
    return Diverged(b * of_teacher + (1 - b) * of_student, q, gradient)


def _skewed_kl(q: Tensor, p: Tensor, a: float, buffers: tuple[Tensor, Tensor]) -> Diverged:
    m = _mix(p, a, q, 1 - a, out=buffers[0])
    p_over_m = torch.div(p, m, out=buffers[1])
    value = _log(p_over_m, out=m).mul_(p).sum(dim=-1)
    mean = torch.mul(q, p_over_m, out=m).sum(dim=-1, keepdim=True)
    return Diverged(value, q, p_over_m.sub_(mean).mul_(q).mul_(a - 1))


def _skewed_reverse_kl(q: Tensor, p: Tensor, a: float, buffers: tuple[Tensor, Tensor]) -> Diverged:
    m = _mix(p, 1 - a, q, a, out=buffers[0])
    q_over_m = torch.div(q, m, out=buffers[1])
    logs = _log(q_over_m, out=m)
    value = torch.mul(q, logs, out=p).sum(dim=-1)
    derivative = logs.sub_(q_over_m, alpha=a)
    mean = torch.mul(q, derivative, out=p).sum(dim=-1, keepdim=True)
    return Diverged(value, q, derivative.sub_(mean).mul_(q))


def _subtract_logs(first: Softmax, second: Softmax) -> Tensor:
    """Returns the log of the ratio of two distributions, in the place of the first one's logits."""
    return first.shifted.sub_(second.shifted).add_((second.total / first.total).log_())


def _mix(p: Tensor, weight_p: float, q: Tensor, weight_q: float, out: Tensor) -> Tensor:
    """Returns `weight_p p + weight_q q`, at least the least float, so that 0 / 0 is 0 where both underflow."""
    mixed = torch.mul(p, weight_p, out=out).add_(q, alpha=weight_q)
    return mixed.clamp_(min=torch.finfo(p.dtype).tiny)


def _log(ratio: Tensor, out: Tensor) -> Tensor:
    """Returns the log of ratios of at least 0; it is only ever multiplied by what is 0 where the ratio is."""
    return torch.clamp(ratio, min=torch.finfo(ratio.dtype).tiny, out=out).log_()
