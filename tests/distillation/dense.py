"""The losses over a vocabulary the dense way, in float64 by autograd: what the chunked ones are compared with.

Written from the papers' definitions with explicit sums, and apart from the code under test.
"""

import torch


def kl(p, q):
    """(n): sum of p log(p / q)."""
    return torch.where(p > 0, p * (p.log() - q.log()), torch.zeros_like(p)).sum(-1)


def divergence_of(p, q, kind, mixture):
    """(n): p is the teacher's distribution, q the student's."""
    if kind == "forward_kl" or (kind in ("jensen_shannon", "skewed_kl") and mixture == 0):
        return kl(p, q)
    if kind == "reverse_kl" or (kind == "jensen_shannon" and mixture == 1) or mixture == 0:
        return kl(q, p)
    if kind == "jensen_shannon":
        m = mixture * p + (1 - mixture) * q
        return mixture * kl(p, m) + (1 - mixture) * kl(q, m)
    if kind == "skewed_kl":
        return kl(p, mixture * p + (1 - mixture) * q)
    return kl(q, (1 - mixture) * p + mixture * q)


def dense_logits(hidden, weight, bias=None, scale=1.0, softcap=None):
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def dense_losses(logits, teacher_logits, labels, divergence):
    """Returns (divergence times T^2, cross-entropy) of each row, (n) each, float64."""
    temperature = divergence.temperature
    q = torch.softmax(logits / temperature, -1)
    p = torch.softmax(teacher_logits / temperature, -1)
    soft = temperature**2 * divergence_of(p, q, divergence.kind, divergence.mixture)
    hard = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    return soft, hard


def merged_tail(probabilities, token_ids):
    """(n, K + 1): the probabilities of the tokens, and of all others together."""
    known = probabilities.gather(1, token_ids)
    others = torch.ones_like(probabilities).scatter(1, token_ids, 0.0)
    return torch.cat([known, (probabilities * others).sum(-1, keepdim=True)], dim=1)
