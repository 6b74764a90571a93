"""The losses over a vocabulary against the dense way in float64: values, gradients, chunks, masks, precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit.distillation.chunked_loss as chunked
from edgekit.distillation.divergences import Divergence
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_losses import TokenTargets, VocabularyObjective, vocabulary_losses
from edgekit.distillation.vocabulary_targets import SampledTargets, TeacherStates, TopKTargets
from edgekit.errors import ModelError, UnsupportedError
from tests.distillation.dense import dense_logits, dense_losses, divergence_of, merged_tail

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl")
SEEDS = st.integers(0, 2**32 - 1)
N, V, H, H_TEACHER = 13, 31, 8, 6


class Case:
    """Random hidden states, heads and labels, with the losses both ways."""

    def __init__(self, seed=0, *, dtype=torch.float64, bias=False, scale=1.0, softcap=None, sizes=(N, V, H)):
        generator = torch.Generator().manual_seed(seed)
        tokens, vocabulary, size = sizes

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden = draw(tokens, size).requires_grad_()
        self.weight = draw(vocabulary, size).requires_grad_()
        self.bias = draw(vocabulary).requires_grad_() if bias else None
        self.transform = {"scale": scale, "softcap": softcap}
        self.teacher_hidden = draw(tokens, H_TEACHER)
        self.teacher_weight = draw(vocabulary, H_TEACHER)
        self.labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
        self.labels[::4] = -100

    @property
    def head(self):
        return VocabularyHead(self.weight, self.bias, **self.transform)

    @property
    def teacher(self):
        return TeacherStates(self.teacher_hidden, VocabularyHead(self.teacher_weight, None, 0.7, 3.0))

    @property
    def leaves(self):
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def targets(self, **changes):
        return TokenTargets(**{"labels": self.labels, "teacher": self.teacher, **changes})

    def ours(self, objective, **changes):
        losses = vocabulary_losses(self.hidden, self.head, self.targets(**changes), objective)
        return losses, torch.autograd.grad(losses.total(objective), self.leaves)

    def dense(self, objective, soft_weights=None, hard_weights=None):
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        logits = (
            dense_logits(*leaves, **self.transform)
            if self.bias is not None
            else dense_logits(*leaves, None, **self.transform)
        )
        teacher_logits = dense_logits(self.teacher_hidden, self.teacher_weight, None, 0.7, 3.0)
        soft, hard = dense_losses(logits, teacher_logits, self.labels, objective.divergence)
        soft = soft if soft_weights is None else soft * soft_weights
        hard = hard if hard_weights is None else hard * hard_weights
        total = objective.soft_targets * soft.sum() + objective.cross_entropy * hard.sum()
        return {"soft_targets": soft.sum(), "cross_entropy": hard.sum()}, torch.autograd.grad(total, leaves)


def objective_of(kind="forward_kl", mixture=0.3, temperature=1.0, coefficients=(0.03, 0.05), chunk=5):
    return VocabularyObjective(Divergence(kind, mixture, temperature), *coefficients, chunk_tokens=chunk)


def relative(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def assert_agrees(found, expected, tolerance):
    losses, gradients = found
    sums, expected_gradients = expected
    for name, value in losses.sums.items():
        assert relative(value, sums[name]) < tolerance, name
    for gradient, aim in zip(gradients, expected_gradients, strict=True):
        assert relative(gradient, aim) < tolerance


@pytest.fixture(autouse=True)
def _few_rows_at_once(monkeypatch):
    monkeypatch.setattr(chunked, "_CACHED_BYTES", 2 * V * 8)  # so that a chunk is more than one block of rows


def test_two_tokens_by_hand():
    hidden = torch.eye(2, requires_grad=True)
    weight = torch.tensor([[0.0, 1.0], [0.0, 0.0]], requires_grad=True)  # logits (0, 0) and (1, 0)
    teacher = TeacherStates(torch.eye(2), VocabularyHead(torch.tensor([[np.log(3.0), 1.0], [0.0, 0.0]])))
    objective = objective_of(coefficients=(1.0, 1.0))
    losses = vocabulary_losses(
        hidden, VocabularyHead(weight), TokenTargets(torch.tensor([0, -100]), teacher), objective
    )
    # token 0: q = (1/2, 1/2), p = (3/4, 1/4), label 0; token 1: q = p, no label
    assert losses.sums["soft_targets"].item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)
    assert losses.sums["cross_entropy"].item() == pytest.approx(np.log(2), rel=1e-6)
    assert (losses.counts["soft_targets"], losses.counts["cross_entropy"]) == (2, 1)
    losses.total(objective).backward()
    # q - p + q - onehot = (-1/4, 1/4) + (-1/2, 1/2) for token 0
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.75, 0.0], [0.75, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_agrees_with_the_dense_way_at_every_chunk_size(kind, temperature):
    case = Case(1, bias=True, scale=0.6, softcap=2.0)
    for chunk in (1, 2, 5, N, 100):
        objective = objective_of(kind, temperature=temperature, chunk=chunk)
        assert_agrees(case.ours(objective), case.dense(objective), 1e-12)


@pytest.mark.parametrize(("kind", "mixture"), [("jensen_shannon", 0.0), ("jensen_shannon", 1.0), ("skewed_kl", 0.0)])
def test_endpoints_agree_too(kind, mixture):
    objective = objective_of(kind, mixture, temperature=1.7)
    assert_agrees(Case(2).ours(objective), Case(2).dense(objective), 1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_to_a_millionth(kind, temperature):
    case = Case(3, dtype=torch.float32, bias=True, scale=0.3, sizes=(64, 900, 32))
    objective = objective_of(kind, temperature=temperature, chunk=24)
    losses, gradients = case.ours(objective)
    assert losses.sums["soft_targets"].dtype == torch.float32
    assert_agrees((losses, gradients), case.dense(objective), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_as_close_as_its_rounding_and_does_not_drift_with_the_chunks(kind):
    case = Case(4, dtype=torch.bfloat16, scale=0.3, sizes=(256, 300, 32))
    fine, coarse = (objective_of(kind, coefficients=(1 / 256, 1 / 256), chunk=chunk) for chunk in (4, 256))
    expected = case.dense(fine)
    for objective in (fine, coarse):
        losses, gradients = case.ours(objective)
        assert gradients[0].dtype == gradients[1].dtype == torch.bfloat16
        assert losses.sums["soft_targets"].dtype == torch.float32
        # one rounding of the logits, one of their gradients: 2^-9 each, relative
        assert_agrees((losses, gradients), expected, 0.01)


def test_a_float32_head_under_bf16_states_gets_a_float32_gradient():
    case = Case(5, dtype=torch.float32, scale=0.3, sizes=(64, 100, 32))
    objective = objective_of(chunk=4)
    hidden = case.hidden.detach().bfloat16().requires_grad_()
    losses = vocabulary_losses(hidden, case.head, case.targets(), objective)
    grads = torch.autograd.grad(losses.total(objective), [hidden, case.weight])
    assert (grads[0].dtype, grads[1].dtype) == (torch.bfloat16, torch.float32)
    _, expected = case.dense(objective)
    assert relative(grads[1], expected[1]) < 0.01
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradients = case.ours(objective)
    assert_agrees((found, gradients), case.dense(objective), 1e-6)  # autocast changes nothing for float32 states


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    case = Case(6, bias=True, scale=1.3, softcap=4.0, sizes=(4, 7, 3))
    objective = objective_of(kind, temperature=1.5, coefficients=(0.7, 0.4), chunk=3)

    def total(hidden, weight, bias):
        head = VocabularyHead(weight, bias, **case.transform)
        return 2 * vocabulary_losses(hidden, head, case.targets(), objective).total(objective)

    assert torch.autograd.gradcheck(total, case.leaves)


@given(SEEDS, st.sampled_from(KINDS), st.floats(0.01, 0.95), st.floats(0.4, 5), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_masks_and_weights_are_those_of_the_dense_way(seed, kind, mixture, temperature, chunk):
    case = Case(seed)
    generator = torch.Generator().manual_seed(seed)
    soft, hard = (torch.rand(N, generator=generator).double() for _ in range(2))
    soft[torch.rand(N, generator=generator) < 0.4] = 0
    hard[torch.rand(N, generator=generator) < 0.4] = 0
    objective = objective_of(kind, mixture, temperature, chunk=chunk)
    losses, gradients = case.ours(objective, divergence_weights=soft, cross_entropy_weights=hard)
    sums, expected = case.dense(objective, soft, hard)
    for name, value in sums.items():
        assert losses.sums[name].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12)
    for gradient, aim in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, aim, atol=1e-12, rtol=1e-8)
    assert losses.counts["soft_targets"].item() == pytest.approx(soft.sum().item())
    assert losses.counts["cross_entropy"].item() == pytest.approx(hard[case.labels != -100].sum().item())


def test_rows_that_do_not_count_may_hold_nan_and_get_no_gradient():
    case = Case(7)
    counts = torch.ones(N)
    counts[[0, 4]] = 0  # rows without a label
    objective = objective_of()
    expected, expected_gradients = case.ours(objective, divergence_weights=counts)
    with torch.no_grad():
        case.hidden[[0, 4]] = torch.nan
        case.teacher_hidden[[0, 4]] = torch.nan
    found, gradients = case.ours(objective, divergence_weights=counts)
    for name, value in expected.sums.items():
        assert torch.equal(value, found.sums[name])
    for gradient, aim in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, aim)
    assert (gradients[0][[0, 4]] == 0).all()
    assert (found.rows["soft_targets"][[0, 4]] == 0).all()


def test_a_step_cut_into_passes_and_padded_has_the_gradient_of_the_whole():
    case = Case(8)
    objective = objective_of(chunk=4)
    whole, gradients = case.ours(objective)
    sums, total = dict.fromkeys(whole.sums, 0.0), [torch.zeros_like(leaf) for leaf in case.leaves]
    for start, stop in ((0, 5), (5, 6), (6, N)):
        padded = torch.cat([case.hidden[start:stop], torch.full((3, H), torch.inf).double()])
        labels = torch.cat([case.labels[start:stop], torch.full((3,), -100)])
        states = torch.cat([case.teacher_hidden[start:stop], torch.full((3, H_TEACHER), torch.nan).double()])
        counts = torch.cat([torch.ones(stop - start), torch.zeros(3)])
        targets = TokenTargets(labels, TeacherStates(states, case.teacher.head), counts)
        losses = vocabulary_losses(padded, case.head, targets, objective)
        for name, value in losses.sums.items():
            sums[name] += value.item()
        parts = torch.autograd.grad(losses.total(objective), case.leaves)
        total = [before + part for before, part in zip(total, parts, strict=True)]
    for name, value in whole.sums.items():
        assert sums[name] == pytest.approx(value.item(), rel=1e-12)
    for found, expected in zip(total, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_each_row_has_its_loss():
    case = Case(9)
    losses, _ = case.ours(objective_of("reverse_kl"))
    logits = dense_logits(case.hidden, case.weight).detach()
    teacher_logits = dense_logits(case.teacher_hidden, case.teacher_weight, None, 0.7, 3.0)
    soft, hard = dense_losses(logits, teacher_logits, case.labels, Divergence("reverse_kl"))
    torch.testing.assert_close(losses.rows["soft_targets"], soft)
    torch.testing.assert_close(losses.rows["cross_entropy"], hard)
    assert not losses.rows["soft_targets"].requires_grad


def test_only_what_has_a_coefficient_is_computed():
    case = Case(10)
    soft_only = objective_of(coefficients=(1.0, 0.0))
    hard_only = objective_of(coefficients=(0.0, 1.0), temperature=3.0)
    assert set(case.ours(soft_only)[0].sums) == {"soft_targets"}
    assert set(case.ours(hard_only)[0].sums) == {"cross_entropy"}
    for objective in (soft_only, hard_only):
        assert_agrees(case.ours(objective), case.dense(objective), 1e-12)
    with pytest.raises(ValueError, match="neither a teacher nor labels"):
        case.ours(hard_only, labels=None)


def test_tied_weights_add_the_gradient_of_the_embedding():
    table = torch.randn(V, H, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, V, (N,))
    case = Case(11)
    objective = objective_of()

    def gradient(head_weight, table):
        hidden = torch.tanh(table[ids])
        losses = vocabulary_losses(hidden, VocabularyHead(head_weight), case.targets(), objective)
        return torch.autograd.grad(losses.total(objective), [head_weight, table], allow_unused=True)

    copy = table.detach().clone().requires_grad_()
    tied = gradient(table, table)[0]
    of_head, of_table = gradient(copy, table)
    torch.testing.assert_close(tied, of_head + of_table)


def test_a_scaled_loss_has_scaled_gradients_and_another_mix_is_refused():
    case = Case(12)
    objective = objective_of()
    _, gradients = case.ours(objective)
    losses = vocabulary_losses(case.hidden, case.head, case.targets(), objective)
    scaled = torch.autograd.grad(8.0 * losses.total(objective), case.leaves)
    for found, expected in zip(scaled, gradients, strict=True):
        torch.testing.assert_close(found, 8 * expected)
    losses = vocabulary_losses(case.hidden, case.head, case.targets(), objective)
    with pytest.raises(RuntimeError, match="Multiply the sums by those coefficients and no others"):
        (losses.sums["soft_targets"] + losses.sums["cross_entropy"]).backward()
    losses = vocabulary_losses(case.hidden, case.head, case.targets(), objective)
    total = losses.total(objective)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already handed out"):
        total.backward()


def test_a_frozen_head_and_evaluation_cost_no_gradient():
    case = Case(13)
    objective = objective_of()
    frozen = VocabularyHead(case.weight.detach())
    losses = vocabulary_losses(case.hidden, frozen, case.targets(), objective)
    (gradient,) = torch.autograd.grad(losses.total(objective), [case.hidden])
    torch.testing.assert_close(gradient, case.dense(objective)[1][0])
    with torch.no_grad():
        evaluated = vocabulary_losses(case.hidden, case.head, case.targets(), objective)
    assert not evaluated.sums["soft_targets"].requires_grad
    assert torch.equal(evaluated.sums["soft_targets"], losses.sums["soft_targets"])


def test_nothing_to_count_is_zero_with_zero_gradients():
    case = Case(14)
    losses, gradients = case.ours(objective_of(), labels=torch.full((N,), -100), divergence_weights=torch.zeros(N))
    assert losses.total(objective_of()).item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


# What is known of the teacher


def known_top_k(case, k, temperature, dtype=torch.float64):
    logits = dense_logits(case.teacher_hidden, case.teacher_weight, None, 0.7, 3.0) / temperature
    log_p = logits.log_softmax(-1)
    log_probs, token_ids = log_p.topk(k)
    tail = merged_tail(log_p.exp(), token_ids)[:, -1]
    return TopKTargets(token_ids, log_probs.to(dtype), tail.log().to(dtype)), log_p.exp()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_top_k_is_the_divergence_with_merged_tails(kind, temperature):
    case = Case(15, bias=True, softcap=5.0)
    objective = objective_of(kind, temperature=temperature)
    known, p = known_top_k(case, 4, temperature)
    found = case.ours(objective, teacher=known)
    leaves = [leaf.detach().requires_grad_() for leaf in case.leaves]
    logits = dense_logits(*leaves, **case.transform)
    merged = [merged_tail(x, known.token_ids) for x in (p, (logits / temperature).softmax(-1))]
    soft = temperature**2 * divergence_of(*merged, kind, 0.3)
    hard = torch.nn.functional.cross_entropy(logits, case.labels, ignore_index=-100, reduction="sum")
    total = objective.soft_targets * soft.sum() + objective.cross_entropy * hard
    expected = ({"soft_targets": soft.sum(), "cross_entropy": hard}, torch.autograd.grad(total, leaves))
    assert_agrees(found, expected, 1e-11)


@given(SEEDS, st.integers(1, V - 2), st.sampled_from(KINDS))
@settings(deadline=None, max_examples=30)
def test_more_known_tokens_never_lower_the_divergence_and_never_pass_the_whole(seed, k, kind):
    case = Case(seed)
    objective = objective_of(kind, coefficients=(1.0, 0.0))
    less, more = (case.ours(objective, teacher=known_top_k(case, n, 1.0)[0])[0] for n in (k, k + 1))
    whole, _ = case.ours(objective)
    slack = 1e-9
    assert (less.rows["soft_targets"] <= more.rows["soft_targets"] + slack).all()
    assert (more.rows["soft_targets"] <= whole.rows["soft_targets"] + slack).all()


def test_with_one_unknown_token_top_k_is_the_whole_divergence():
    case = Case(16)
    for kind in KINDS:
        objective = objective_of(kind)
        found = case.ours(objective, teacher=known_top_k(case, V - 1, 1.0)[0])
        assert_agrees(found, case.dense(objective), 1e-11)


def test_the_tail_keeps_its_mass_where_renormalizing_would_take_it_away():
    """A student that equals the teacher is at rest; the renormalized loss would push it towards the known tokens."""
    case = Case(17)
    known, _ = known_top_k(case, 3, 1.0)
    hidden = case.teacher_hidden.clone().requires_grad_()
    head = case.teacher.head
    objective = objective_of(coefficients=(1.0, 0.0))
    losses = vocabulary_losses(hidden, head, TokenTargets(teacher=known), objective)
    (gradient,) = torch.autograd.grad(losses.total(objective), [hidden])
    assert losses.sums["soft_targets"].item() == pytest.approx(0, abs=1e-10)
    assert gradient.abs().max() < 1e-10
    free = hidden.detach().requires_grad_()
    q = dense_logits(free, head.weight, None, 0.7, 3.0).log_softmax(-1).gather(1, known.token_ids)
    p = known.log_probs.exp() / known.log_probs.exp().sum(-1, keepdim=True)
    (pushed,) = torch.autograd.grad(-(p * q).sum(), [free])
    assert pushed.abs().max() > 0.05


def test_samples_that_hold_the_whole_distribution_give_forward_kl():
    case = Case(18)
    p = dense_logits(case.teacher_hidden, case.teacher_weight, None, 0.7, 3.0).div(1.5).softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    # each token in two slots of half its weight, and an unused slot
    ids = torch.cat([torch.arange(V), torch.arange(V), torch.zeros(1, dtype=torch.int64)]).expand(N, -1)
    weights = torch.cat([p / 2, p / 2, torch.zeros(N, 1)], dim=1)
    objective = objective_of(temperature=1.5)
    found = case.ours(objective, teacher=SampledTargets(ids, weights, entropy))
    assert_agrees(found, case.dense(objective), 1e-11)
    with pytest.raises(UnsupportedError, match="only forward_kl is unbiased from samples"):
        case.ours(objective_of("reverse_kl"), teacher=SampledTargets(ids, weights, entropy))


# Other vocabularies


def test_a_padded_or_permuted_teacher_is_renormalized_over_the_students_tokens():
    case = Case(19)
    objective = objective_of()
    expected = case.dense(objective)
    padded = torch.cat([case.teacher_weight, torch.randn(5, H_TEACHER).double()])
    head = VocabularyHead(padded, None, 0.7, 3.0)
    chosen = head.select(torch.arange(V))
    assert chosen.weight.data_ptr() == padded.data_ptr()  # no copy
    assert_agrees(case.ours(objective, teacher=TeacherStates(case.teacher_hidden, chosen)), expected, 1e-12)
    order = torch.randperm(V + 5)
    shuffled = VocabularyHead(padded[order], torch.zeros(V + 5).double(), 0.7, 3.0)
    place = torch.argsort(order)[:V]
    teacher = TeacherStates(case.teacher_hidden, shuffled.select(place))
    assert_agrees(case.ours(objective, teacher=teacher), expected, 1e-12)


def test_a_vocabulary_that_does_not_fit_is_refused():
    case = Case(20)
    larger = VocabularyHead(torch.randn(V + 1, H_TEACHER).double())
    with pytest.raises(ModelError, match=r"found 32 tokens in the teacher's head and 31 .*VocabularyHead.select"):
        case.ours(objective_of(), teacher=TeacherStates(case.teacher_hidden, larger))
    with pytest.raises(ModelError, match="found teacher ids 0 to 40, expected ids from 0 to 31"):
        larger.select(torch.tensor([0, 40]))
    with pytest.raises(ModelError, match="the same teacher id"):
        larger.select(torch.tensor([0, 3, 3]))
    known = TopKTargets(torch.full((N, 1), V), torch.zeros(N, 1), torch.full((N,), -9.0))
    with pytest.raises(ModelError, match="found the token id 31, expected ids below 31"):
        case.ours(objective_of(), teacher=known)


def test_wrong_input_is_refused_by_name():
    case = Case(21)
    objective = objective_of()
    with pytest.raises(ValueError, match=r"labels: found 31, expected -100 or a token id from 0 to 30"):
        case.ours(objective, labels=torch.full((N,), V))
    with pytest.raises(ValueError, match=r"divergence_weights: found shape \(2,\), expected \(13,\)"):
        case.ours(objective, divergence_weights=torch.ones(2))
    with pytest.raises(ValueError, match="teacher: found 3 rows, expected 13"):
        case.ours(objective, teacher=TeacherStates(case.teacher_hidden[:3], case.teacher.head))
    with pytest.raises(UnsupportedError, match="float16, expected float32, float64 or bfloat16"):
        vocabulary_losses(case.hidden.half(), case.head, case.targets(), objective)
    with pytest.raises(ValueError, match=r"found shape \(13, 3\), expected \(N, 8\)"):
        vocabulary_losses(case.hidden[:, :3], case.head, case.targets(), objective)


def test_no_tensor_of_tokens_by_vocabulary_is_made(monkeypatch):
    """Every tensor that any operator returns, forward and backward, stays at the chunk's size or the head's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for found in result if isinstance(result, tuple | list) else [result]:
                if isinstance(found, torch.Tensor):
                    sizes.append(found.numel())
            return result

    case = Case(22, dtype=torch.float32, sizes=(400, 300, 8))
    objective = objective_of("jensen_shannon", temperature=2.0, chunk=16)
    with Watch():
        losses = vocabulary_losses(case.hidden, case.head, case.targets(), objective)
        losses.total(objective).backward()
    assert max(sizes) == max(16 * 300, 400 * 8)


def test_the_heads_gradient_is_handed_out_without_a_copy():
    """Also where a coefficient is not a float32 number, such as 0.9 / 4096."""
    case = Case(23, dtype=torch.float32)
    objective = objective_of(coefficients=(0.9 / 4096, 0.1 / 4096))
    total = vocabulary_losses(case.hidden, case.head, case.targets(), objective).total(objective)
    made = total.grad_fn  # the sum of the coefficients' products
    while made.name() != "ChunkedLossBackward":
        made = made.next_functions[0][0]
    address = made.gradients[1].data_ptr()
    total.backward()
    assert case.weight.grad.data_ptr() == address
