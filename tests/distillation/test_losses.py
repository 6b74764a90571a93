"""The losses against independent float64 references in numpy, their gradients, and their invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.distillation.losses import (
    attention_relation_loss,
    cross_entropy_loss,
    distillation_loss,
    hidden_state_loss,
    soft_target_loss,
)

SEEDS = st.integers(0, 2**32 - 1)


def softmax(values):
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def reference_soft(student, teacher, temperature):
    total = 0.0
    for own, aim in zip(student, teacher, strict=True):
        p, q = softmax(aim / temperature), softmax(own / temperature)
        total += sum(p[c] * (math.log(p[c]) - math.log(q[c])) for c in range(len(p)))
    return temperature**2 * total / len(student)


def reference_cross_entropy(logits, labels):
    values = [-math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True) if label != -100]
    return sum(values) / max(len(values), 1)


def reference_relation(student, teacher, mask, heads):
    """Position by position, with plain loops over the positions that count."""
    total, positions = 0.0, 0
    for row in range(mask.shape[0]):
        kept = np.flatnonzero(mask[row])
        for i in kept:
            positions += 1
            for head in range(heads):
                rows = []
                for x in (teacher, student):
                    size = x.shape[-1] // heads
                    part = x[row, :, head * size : (head + 1) * size]
                    rows.append(softmax(np.array([part[i] @ part[j] for j in kept]) / math.sqrt(size)))
                p, q = rows
                total += float((p * (np.log(p) - np.log(q))).sum()) / heads
    return total / max(positions, 1)


def tensors(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def random_mask(seed, batch, length):
    """Each row padded on the right, at least one position kept."""
    generator = np.random.default_rng(seed)
    kept = generator.integers(1, length + 1, size=batch)
    return torch.from_numpy((np.arange(length)[None, :] < kept[:, None]).astype(np.int64))


def test_soft_targets_of_a_hand_computed_pair():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    # teacher (3/4, 1/4) against (1/2, 1/2): 0.75 ln 1.5 + 0.25 ln 0.5
    assert soft_target_loss(student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    # at T = 2 the teacher's odds are sqrt(3), and the result is times 4
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert soft_target_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-5)


@given(SEEDS, st.integers(1, 5), st.integers(2, 6), st.floats(0.3, 8))
@settings(deadline=None, max_examples=30)
def test_soft_targets_equal_the_reference(seed, rows, classes, temperature):
    student, teacher = tensors(seed, (rows, classes), (rows, classes))
    found = soft_target_loss(student, teacher, temperature=temperature)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(reference_soft(student.numpy(), teacher.numpy(), temperature), abs=1e-12)


def test_soft_targets_have_the_gradient_of_the_paper():
    student, teacher = tensors(1, (4, 3), (4, 3))
    student.requires_grad_()
    soft_target_loss(student, teacher, temperature=3.0).backward()
    # Hinton et al., equation 2, times T^2: T (q - p), averaged over rows
    expected = 3.0 * (softmax(student.detach().numpy() / 3) - softmax(teacher.numpy() / 3)) / 4
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: soft_target_loss(x, teacher, temperature=3.0), (student,))


def test_no_gradient_flows_into_the_teacher():
    student, teacher, states, aims = tensors(2, (2, 3), (2, 3), (2, 4, 8), (2, 4, 8))
    for tensor in (student, teacher, states, aims):
        tensor.requires_grad_()
    mask = torch.ones(2, 4)
    loss = soft_target_loss(student, teacher) + hidden_state_loss(states, aims, mask)
    loss = loss + attention_relation_loss(states, aims, mask, relation_heads=2)
    loss.backward()
    assert teacher.grad is None
    assert aims.grad is None
    assert student.grad is not None
    assert states.grad is not None


@given(SEEDS, st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_soft_targets_ignore_a_shift_and_vanish_when_equal(seed, shift):
    student, teacher = tensors(seed, (3, 4), (3, 4))
    shifted = soft_target_loss(student + shift, teacher - shift, temperature=2.0)
    assert shifted.item() == pytest.approx(soft_target_loss(student, teacher, temperature=2.0).item(), abs=1e-9)
    assert soft_target_loss(student, student + shift).item() == pytest.approx(0, abs=1e-12)
    assert shifted.item() >= 0


def test_cross_entropy_counts_labelled_rows_only():
    (logits,) = tensors(3, (5, 3))
    labels = torch.tensor([0, -100, 2, -100, 1])
    expected = reference_cross_entropy(logits.numpy(), labels.tolist())
    assert cross_entropy_loss(logits, labels).item() == pytest.approx(expected, abs=1e-12)
    assert cross_entropy_loss(logits, labels, reduction="sum").item() == pytest.approx(3 * expected, abs=1e-12)
    changed = logits.clone()
    changed[1] = 1e4
    assert cross_entropy_loss(changed, labels).item() == pytest.approx(expected, abs=1e-12)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy_loss(x, labels), (logits,))


def test_a_batch_without_labels_gives_zero_and_no_nan():
    (logits,) = tensors(4, (2, 3))
    logits.requires_grad_()
    loss = cross_entropy_loss(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@given(SEEDS, st.floats(0, 1), st.floats(0.5, 5))
@settings(deadline=None, max_examples=20)
def test_the_combination_is_the_weighted_sum_of_both_references(seed, alpha, temperature):
    student, teacher = tensors(seed, (4, 3), (4, 3))
    labels = torch.tensor([2, -100, 0, -100])
    expected = alpha * reference_soft(student.numpy(), teacher.numpy(), temperature)
    expected += (1 - alpha) * reference_cross_entropy(student.numpy(), labels.tolist())
    found = distillation_loss(student, teacher, labels, alpha=alpha, temperature=temperature)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_half_precision_inputs_are_computed_in_float32():
    student, teacher = (tensor.to(torch.bfloat16) for tensor in tensors(5, (4, 3), (4, 3)))
    found = soft_target_loss(student, teacher, temperature=2.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, soft_target_loss(student.float(), teacher.float(), temperature=2.0))


@given(SEEDS, st.integers(1, 3), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_hidden_states_equal_the_reference_and_ignore_padding(seed, batch, length):
    student, teacher = tensors(seed, (batch, length, 4), (batch, length, 4))
    mask = random_mask(seed, batch, length)
    kept = mask.numpy().astype(bool)
    expected = np.mean((student.numpy()[kept] - teacher.numpy()[kept]) ** 2)
    assert hidden_state_loss(student, teacher, mask).item() == pytest.approx(expected, abs=1e-12)
    total = hidden_state_loss(student, teacher, mask, reduction="sum").item()
    assert total == pytest.approx(expected * kept.sum(), abs=1e-12)
    spoiled = torch.where(mask.bool()[:, :, None], student, torch.nan)
    assert hidden_state_loss(spoiled, teacher, mask).item() == pytest.approx(expected, abs=1e-12)


def test_hidden_states_pass_gradcheck_with_padding_at_zero():
    student, teacher = tensors(6, (2, 3, 4), (2, 3, 4))
    student.requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.autograd.gradcheck(lambda x: hidden_state_loss(x, teacher, mask), (student,))
    hidden_state_loss(student, teacher, mask).backward()
    expected = 2 * (student.detach() - teacher) * mask[:, :, None] / (3 * 4)
    torch.testing.assert_close(student.grad, expected)


@given(SEEDS, st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=30)
def test_relations_equal_the_reference(seed, batch, length, heads):
    student, teacher = tensors(seed, (batch, length, 8), (batch, length, 16))
    mask = random_mask(seed, batch, length)
    found = attention_relation_loss(student, teacher, mask, relation_heads=heads)
    expected = reference_relation(student.numpy(), teacher.numpy(), mask.numpy(), heads)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    total = attention_relation_loss(student, teacher, mask, relation_heads=heads, reduction="sum")
    assert total.item() == pytest.approx(expected * int(mask.sum()), abs=1e-11)


@given(SEEDS, st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_relations_ignore_what_padding_holds_and_how_much_of_it_there_is(seed, extra):
    student, teacher = tensors(seed, (2, 5, 8), (2, 5, 8))
    mask = random_mask(seed, 2, 5)
    expected = attention_relation_loss(student, teacher, mask, relation_heads=2).item()
    spoiled = torch.where(mask.bool()[:, :, None], student, torch.nan)
    more = torch.full((2, extra, 8), torch.inf, dtype=torch.float64)
    wider = torch.cat([mask, torch.zeros(2, extra, dtype=torch.int64)], dim=1)
    found = attention_relation_loss(
        torch.cat([spoiled, more], dim=1), torch.cat([teacher, more], dim=1), wider, relation_heads=2
    )
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_relations_pass_gradcheck_also_beside_padding_that_is_nan():
    student, teacher = tensors(7, (2, 4, 8), (2, 4, 8))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention_relation_loss(x, teacher, mask, relation_heads=2), (student,))
    spoiled = torch.where(mask.bool()[:, :, None], student.detach(), torch.nan).requires_grad_()
    attention_relation_loss(spoiled, teacher, mask, relation_heads=2).backward()
    assert torch.isfinite(spoiled.grad).all()
    assert spoiled.grad[~mask.bool()].abs().sum() == 0


def test_relations_of_equal_vectors_are_zero_whatever_their_rotation():
    (vectors,) = tensors(8, (2, 4, 8))
    rotation, _ = torch.linalg.qr(tensors(9, (8, 8))[0])
    mask = torch.ones(2, 4)
    found = attention_relation_loss(vectors @ rotation, vectors, mask, relation_heads=1)
    assert found.item() == pytest.approx(0, abs=1e-12)


def test_relation_heads_must_divide_the_sizes():
    student, teacher = tensors(10, (1, 2, 8), (1, 2, 8))
    with pytest.raises(ValueError, match="relation_heads: found 3, expected a divisor of 8"):
        attention_relation_loss(student, teacher, torch.ones(1, 2), relation_heads=3)


@given(SEEDS, st.integers(1, 7))
@settings(deadline=None, max_examples=20)
def test_sums_over_parts_add_up_to_the_sum_over_the_whole(seed, cut):
    student, teacher = tensors(seed, (8, 3), (8, 3))
    labels = torch.from_numpy(np.random.default_rng(seed).choice([-100, 0, 1, 2], size=8))
    for whole, part in (
        (
            soft_target_loss(student, teacher, temperature=2.0, reduction="sum"),
            lambda at: soft_target_loss(student[at], teacher[at], temperature=2.0, reduction="sum"),
        ),
        (
            cross_entropy_loss(student, labels, reduction="sum"),
            lambda at: cross_entropy_loss(student[at], labels[at], reduction="sum"),
        ),
    ):
        assert (part(slice(0, cut)) + part(slice(cut, 8))).item() == pytest.approx(whole.item(), abs=1e-12)
