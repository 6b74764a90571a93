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


class Diverged(NamedTuple):
    """What `diverge` finds of n rows of C classes."""

    value: Tensor
    """(n), the divergence of each row, without T^2."""
    q: Tensor
    """(n, C), the student's probabilities."""
    gradient: Tensor
    """(n, C), dL/ds."""


def diverge(log_q: Tensor, log_p: Tensor, spare: tuple[Tensor, Tensor], divergence: Divergence) -> Diverged:
    """Returns the divergence of each row with its gradient, and allocates nothing of size (n, C).

    All four tensors are (n, C) buffers of one float dtype, none overlapping; all are overwritten, and two of them are
    what `q` and `gradient` of the result are.

    Args:
        log_q: the student's log-probabilities, finite.
        log_p: the teacher's log-probabilities, finite.
        spare: any content.
        divergence: the kind and its mixture; the temperature plays no part here.
    """
    kind, mixture = divergence.plain, divergence.mixture
    if kind == "forward_kl":
        return _forward_kl(log_q, log_p, spare[0])
    if kind == "reverse_kl":
        return _reverse_kl(log_q, log_p, spare[0])
    if kind == "jensen_shannon":
        return _jensen_shannon(log_q, log_p, spare, mixture)
    if kind == "skewed_kl":
        return _skewed_kl(log_q, log_p, spare, mixture)
    return _skewed_reverse_kl(log_q, log_p, spare, mixture)


def _forward_kl(log_q: Tensor, log_p: Tensor, spare: Tensor) -> Diverged:
    p = torch.exp(log_p, out=spare)
    value = log_p.sub_(log_q).mul_(p).sum(dim=-1)
    q = log_q.exp_()
    return Diverged(value, q, torch.sub(q, p, out=spare))


def _reverse_kl(log_q: Tensor, log_p: Tensor, spare: Tensor) -> Diverged:
    ratio = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    value = torch.mul(q, ratio, out=spare).sum(dim=-1)
    return Diverged(value, q, ratio.sub_(value[:, None]).mul_(q))


def _jensen_shannon(log_q: Tensor, log_p: Tensor, spare: tuple[Tensor, Tensor], b: float) -> Diverged:
    q = torch.exp(log_q, out=spare[1])
    log_m = _log_mixture(torch.exp(log_p, out=spare[0]), b, q, 1 - b)
    p_over_m, q_over_m = log_p.sub_(log_m), log_q.sub_(log_m)
    p = log_m.add_(p_over_m).exp_()
    of_teacher = p.mul_(p_over_m).sum(dim=-1)
    of_student = torch.mul(q, q_over_m, out=p).sum(dim=-1)
    gradient = q_over_m.sub_(of_student[:, None]).mul_(q).mul_(1 - b)
    return Diverged(b * of_teacher + (1 - b) * of_student, q, gradient)


def _skewed_kl(log_q: Tensor, log_p: Tensor, spare: tuple[Tensor, Tensor], a: float) -> Diverged:
    p, q = torch.exp(log_p, out=spare[0]), torch.exp(log_q, out=spare[1])
    log_m = _log_mixture(log_q.copy_(p), a, q, 1 - a)
    p_over_m = log_p.sub_(log_m)
    value = p.mul_(p_over_m).sum(dim=-1)
    ratio = p_over_m.exp_()
    mean = torch.mul(q, ratio, out=p).sum(dim=-1, keepdim=True)
    return Diverged(value, q, ratio.sub_(mean).mul_(q).mul_(a - 1))


def _skewed_reverse_kl(log_q: Tensor, log_p: Tensor, spare: tuple[Tensor, Tensor], a: float) -> Diverged:
    q = torch.exp(log_q, out=spare[1])
    log_m = _log_mixture(torch.exp(log_p, out=spare[0]), 1 - a, q, a)
    q_over_m = log_q.sub_(log_m)
    value = torch.mul(q, q_over_m, out=log_m).sum(dim=-1)
    derivative = q_over_m.sub_(torch.exp(q_over_m, out=log_p), alpha=a)
    mean = torch.mul(q, derivative, out=log_m).sum(dim=-1, keepdim=True)
    return Diverged(value, q, derivative.sub_(mean).mul_(q))


def _log_mixture(p: Tensor, weight_p: float, q: Tensor, weight_q: float) -> Tensor:
    """Returns `log(weight_p p + weight_q q)` in the place of `p`; where both underflow, the log of the least float."""
    return p.mul_(weight_p).add_(q, alpha=weight_q).clamp_(min=torch.finfo(p.dtype).tiny).log_()
