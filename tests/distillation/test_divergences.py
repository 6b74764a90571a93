"""Each divergence against its definition in float64, by hand, its endpoints, and its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from edgekit.distillation.divergences import Divergence, diverge, normalize
from tests.distillation.dense import divergence_of

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl")
SEEDS = st.integers(0, 2**32 - 1)


def run(student, teacher, divergence):
    softmaxes = [normalize(logits.clone(), torch.empty_like(logits)) for logits in (student, teacher)]
    found = diverge(*softmaxes, divergence)
    return found.value, found.q, found.gradient


def reference(student, teacher, divergence):
    logits = student.double().detach().requires_grad_()
    value = divergence_of(teacher.double().softmax(-1), logits.softmax(-1), divergence.kind, divergence.mixture)
    value.sum().backward()
    return value.detach(), logits.grad


def logits_of(seed, rows, classes, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, classes, generator=generator, dtype=torch.float64) * spread for _ in range(2)]


def test_every_kind_of_a_hand_computed_pair():
    student, teacher = torch.zeros(1, 2).double(), torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    # p = (3/4, 1/4), q = (1/2, 1/2); for a mixture of 1/2 m = (5/8, 3/8)
    to_m = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    from_q = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    expected = {
        "forward_kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        "reverse_kl": 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0),
        "jensen_shannon": 0.5 * to_m + 0.5 * from_q,
        "skewed_kl": to_m,
        "skewed_reverse_kl": from_q,
    }
    for kind, value in expected.items():
        assert run(student, teacher, Divergence(kind, 0.5))[0].item() == pytest.approx(value, abs=1e-12), kind


@given(SEEDS, st.sampled_from(KINDS), st.floats(0, 0.99), st.integers(1, 4), st.integers(2, 9))
@settings(deadline=None, max_examples=60)
def test_value_and_gradient_equal_the_definition(seed, kind, mixture, rows, classes):
    student, teacher = logits_of(seed, rows, classes)
    divergence = Divergence(kind, mixture)
    value, q, gradient = run(student, teacher, divergence)
    expected_value, expected_gradient = reference(student, teacher, divergence)
    torch.testing.assert_close(value, expected_value, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(q, student.softmax(-1))


@given(SEEDS, st.sampled_from(KINDS), st.floats(0, 0.99))
@settings(deadline=None, max_examples=30)
def test_a_divergence_is_positive_and_zero_with_zero_gradient_when_equal(seed, kind, mixture):
    student, teacher = logits_of(seed, 3, 7)
    assert (run(student, teacher, Divergence(kind, mixture))[0] > -1e-12).all()
    value, _, gradient = run(student, student + 3.0, Divergence(kind, mixture))
    assert value.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("mixture", "limit"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_endpoints_of_jensen_shannon_are_its_limits_without_the_factor(mixture, limit):
    student, teacher = logits_of(3, 4, 6)
    at_the_end = run(student, teacher, Divergence("jensen_shannon", mixture))
    of_the_limit = run(student, teacher, Divergence(limit))
    near = 1e-8
    close = run(student, teacher, Divergence("jensen_shannon", abs(mixture - near)))
    for found, expected, nearby in zip(at_the_end, of_the_limit, close, strict=True):
        assert torch.equal(found, expected)
        if nearby is not close[1]:
            torch.testing.assert_close(nearby / near, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jensen_shannon_has_the_convention_of_gkd(beta):
    """As TRL's GKDTrainer has it: b weighs the teacher, in the mixture and among the two divergences."""
    student, teacher = (logits.log_softmax(-1) for logits in logits_of(5, 6, 8))
    if beta in (0, 1):
        pair = (student, teacher) if beta == 0 else (teacher, student)
        expected = F.kl_div(*pair, reduction="none", log_target=True)
    else:
        mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
        of_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True)
        of_student = F.kl_div(mixture, student, reduction="none", log_target=True)
        expected = beta * of_teacher + (1 - beta) * of_student
    torch.testing.assert_close(run(student, teacher, Divergence("jensen_shannon", beta))[0], expected.sum(-1))


@pytest.mark.parametrize(("kind", "limit"), [("skewed_kl", "forward_kl"), ("skewed_reverse_kl", "reverse_kl")])
def test_no_skew_is_plain_kl(kind, limit):
    student, teacher = logits_of(4, 4, 6)
    for found, expected in zip(
        run(student, teacher, Divergence(kind, 0.0)), run(student, teacher, Divergence(limit)), strict=True
    ):
        assert torch.equal(found, expected)
    assert Divergence(kind, 1e-3).plain == kind


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_that_do_not_overlap_in_float32_stay_finite(kind):
    student = torch.tensor([[200.0, 0.0, -200.0]])
    teacher = torch.tensor([[-200.0, 0.0, 200.0]])
    value, q, gradient = run(student, teacher, Divergence(kind, 0.3))
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert value.item() > 0.3
    assert q[0, 0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "kl"}, "kind: found 'kl', expected one of forward_kl"),
        ({"temperature": 0.0}, "temperature: found 0.0, expected a number above 0"),
        ({"kind": "jensen_shannon", "mixture": 1.2}, "expected 0 <= mixture <= 1"),
        ({"kind": "skewed_kl", "mixture": 1.0}, "found 1.0 for skewed_kl, expected 0 <= mixture < 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Divergence(**settings)
