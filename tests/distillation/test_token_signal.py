"""What is kept of each token: sizes, exactness of what is known, and that samples are without bias."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.distillation.config import TokenSignalConfig
from edgekit.distillation.divergences import Divergence
from edgekit.distillation.token_signal import TokenLayout
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_losses import TokenTargets, VocabularyObjective, vocabulary_losses
from edgekit.errors import TrainingError, UsageError
from tests.distillation.dense import dense_logits, dense_losses, merged_tail

V, H, N = 40, 8, 12
CPU = torch.device("cpu")


def states(seed=0, tokens=N, vocabulary=V, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, H, generator=generator, dtype=torch.float64)
    return hidden, VocabularyHead(torch.randn(vocabulary, H, generator=generator, dtype=torch.float64) * spread)


def layout(vocabulary=V, **settings):
    return TokenLayout(TokenSignalConfig(**settings), vocabulary)


def encoded(made, hidden, head, seed=0, **options):
    return made.encode(hidden, head, np.random.default_rng(seed), **options)


@pytest.mark.parametrize(
    ("vocabulary", "settings", "size"),
    [
        (49_152, {"k": 48}, 194),
        (49_152, {"k": 74}, 298),
        (65_536, {"k": 48}, 194),
        (151_936, {"k": 48}, 290),
        (49_152, {"kind": "sampled", "draws": 64}, 194),
        (151_936, {"kind": "sampled", "draws": 59}, 297),
        (49_152, {"kind": "sampled", "draws": 59, "proposal_exponent": 0.8}, 297),
    ],
)
def test_a_record_takes_the_bytes_that_are_documented(vocabulary, settings, size):
    assert layout(vocabulary, **settings).bytes_per_token == size


def test_more_than_300_bytes_and_a_k_without_a_tail_are_refused():
    with pytest.raises(UsageError, match=r"k: found 75, which takes 302 bytes .* expected at most 74, for 300 bytes"):
        layout(49_152, k=75)
    with pytest.raises(UsageError, match=r"draws: found 100, which takes 502 bytes .* expected at most 59"):
        layout(151_936, kind="sampled", draws=100)
    with pytest.raises(UsageError, match="k: found 40, expected less than the vocabulary's 40 tokens"):
        layout(k=40)


@given(st.integers(0, 2**32 - 1), st.integers(1, V - 1), st.sampled_from([0.5, 1.0, 3.0]))
@settings(deadline=None, max_examples=25)
def test_top_k_keeps_ids_probabilities_and_the_exact_tail(seed, k, temperature):
    hidden, head = states(seed)
    made = layout(k=k, temperature=temperature)
    kept = made.decode(encoded(made, hidden, head, chunk_tokens=5), CPU)
    p = (dense_logits(hidden, head.weight) / temperature).softmax(-1)
    assert torch.equal(kept.token_ids, p.topk(k).indices)
    expected = merged_tail(p, kept.token_ids)
    found = torch.cat([kept.log_probs, kept.log_tail[:, None]], dim=1).double().exp()
    visible = expected > 1e-13  # below e^-32 all are e^-32
    assert ((found / expected - 1).abs() < 2.6e-4)[visible].all()
    assert (found[~visible] < 1.3e-13).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_of_top_k_is_that_of_the_known_classes(temperature):
    hidden, head = states(1)
    student, student_head = states(2)
    made = layout(k=6, temperature=temperature)
    kept = made.decode(encoded(made, hidden, head), CPU)
    objective = VocabularyObjective(Divergence("forward_kl", temperature=temperature))
    found = vocabulary_losses(student, student_head, TokenTargets(teacher=kept), objective)
    p = (dense_logits(hidden, head.weight) / temperature).softmax(-1)
    q = (dense_logits(student, student_head.weight) / temperature).softmax(-1)
    p, q = merged_tail(p, kept.token_ids), merged_tail(q, kept.token_ids)
    expected = temperature**2 * (p * (p / q).log()).sum(-1)
    # the codes' rounding: 2.4e-4 of each probability
    torch.testing.assert_close(found.rows["soft_targets"], expected, rtol=2e-3, atol=1e-3)


def test_a_hand_made_distribution_is_drawn_in_its_proportions():
    hidden, head = torch.ones(1, 1), VocabularyHead(torch.tensor([[0.5], [0.25], [0.25], [1e-30]]).log())
    made = layout(4, kind="sampled", draws=8)
    kept = made.decode(encoded(made, hidden, head), CPU)
    # strata: exactly 4, 2 and 2 of 8 draws
    weights = torch.zeros(1, 4).scatter_add_(1, kept.token_ids, kept.weights)
    assert weights.tolist() == [[0.5, 0.25, 0.25, 0.0]]
    assert kept.entropy.item() == pytest.approx(1.5 * np.log(2), abs=1e-3)


def drawn_weights(made, hidden, head, rounds):
    """Returns the weights of `rounds` captures, (rounds, N, V)."""
    kept = made.decode(encoded(made, hidden.repeat(rounds, 1), head), CPU)
    weights = torch.zeros(len(kept.weights), V, dtype=torch.float64)
    return weights.scatter_add_(1, kept.token_ids, kept.weights.double()).view(rounds, len(hidden), V)


@pytest.mark.parametrize(("exponent", "temperature"), [(1.0, 1.0), (0.7, 1.0), (1.0, 2.0)])
def test_the_expected_weights_are_the_teachers_distribution(exponent, temperature):
    hidden, head = states(3, tokens=4)
    made = layout(kind="sampled", draws=12, proposal_exponent=exponent, temperature=temperature)
    p = (dense_logits(hidden, head.weight) / temperature).softmax(-1)
    weights = drawn_weights(made, hidden, head, 8000)
    difference, error = weights.mean(dim=0) - p, weights.std(dim=0) / 8000**0.5
    # 160 numbers: 5 standard errors, with those of independent draws where a token was never drawn
    assert (difference.abs() <= 5 * torch.maximum(error, (p / 12 / 8000).sqrt()) + 2e-4 * p).all()
    assert difference.abs().sum(-1).max() < 0.02
    known = p.topk(12).values
    assert (known / known.sum(-1, keepdim=True) - known).sum(-1).max() > 0.05  # what renormalized top-12 is off by


def test_the_gradient_of_forward_kl_is_without_bias_and_its_value_too():
    rounds = 4000
    hidden, head = states(4, tokens=3)
    student, student_head = states(5, tokens=3)
    repeated = student.repeat(rounds, 1).requires_grad_()
    made = layout(kind="sampled", draws=10, proposal_exponent=0.8)
    kept = made.decode(encoded(made, hidden.repeat(rounds, 1), head), CPU)
    losses = vocabulary_losses(repeated, student_head, TokenTargets(teacher=kept), VocabularyObjective())
    (gradients,) = torch.autograd.grad(losses.sums["soft_targets"], [repeated])
    student.requires_grad_()
    logits = dense_logits(student, student_head.weight)
    soft, _ = dense_losses(logits, dense_logits(hidden, head.weight), torch.zeros(3, dtype=torch.int64), Divergence())
    (expected,) = torch.autograd.grad(soft.sum(), [student])
    for found, aim in ((gradients, expected), (losses.rows["soft_targets"], soft.detach())):
        drawn = found.view(rounds, *aim.shape)
        error = drawn.std(dim=0) / rounds**0.5
        assert ((drawn.mean(dim=0) - aim).abs() < 5 * error + 1e-3 * aim.abs().max()).all()
        assert (error < 0.02 * aim.abs().max()).all()  # else the comparison says nothing


def test_strata_vary_less_than_independent_draws():
    hidden, head = states(6, tokens=3)
    p = dense_logits(hidden, head.weight).softmax(-1)
    found = drawn_weights(layout(kind="sampled", draws=16), hidden, head, 1000).var(dim=0).sum(-1)
    assert (found < (p * (1 - p) / 16).sum(-1)).all()


def test_draws_depend_on_the_seed_and_not_on_the_chunks():
    hidden, head = states(7)
    made = layout(kind="sampled", draws=20)
    first = encoded(made, hidden, head, 1, chunk_tokens=3)
    assert np.array_equal(first, encoded(made, hidden, head, 1, chunk_tokens=100))
    assert not np.array_equal(first, encoded(made, hidden, head, 2))
    assert (first["counts"].sum(axis=1) == 20).all()


def test_logits_that_are_not_finite_name_the_token():
    hidden, head = states(8)
    hidden[7, 0] = torch.nan
    with pytest.raises(TrainingError, match="token 7: the teacher's logits are not finite"):
        encoded(layout(k=4), hidden, head, chunk_tokens=5)
