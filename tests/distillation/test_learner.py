"""The student with its losses: what each loss sees, how sums become one gradient, and which layers are matched."""

import numpy as np
import pytest
import torch

from edgekit.distillation.batches import Rows, collate
from edgekit.distillation.learner import Learner, Objective, Observation, observe
from edgekit.distillation.matching import LayerOutputs, View, spaced_layers
from edgekit.distillation.projections import find_projections
from edgekit.errors import UnsupportedError
from tests.pico import ARCHITECTURES, pico_loaded

CPU = torch.device("cpu")
OBJECTIVE = Objective(
    alpha=0.7,
    temperature=2.0,
    hidden_state_weight=0.4,
    attention_relation_weight=0.3,
    layer_map=((0, 1), (1, 3)),
    relation_layers=(1, 3),
    relation_heads=4,
)


@pytest.fixture(scope="module")
def models():
    return pico_loaded(layers=2, seed=1).model, pico_loaded(layers=4, seed=0).model


@pytest.fixture(scope="module")
def rows():
    """Seven rows of 2 to 8 tokens: some unlabelled, and one that the teacher's tokenizer cuts otherwise."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 60, size=length).tolist() for length in (2, 3, 4, 5, 6, 7, 8)]
    labels = np.array([0, 1, -100, 1, -100, 0, -100])
    logits = generator.normal(size=(7, 2)).astype(np.float32)
    return Rows([f"row {i}" for i in range(7)], ["text"] * 7, ids, labels, logits, [*ids[:6], ids[6][:5]])


def gradients(models, rows, passes, objective=OBJECTIVE):
    """Returns the loss and the gradient of one step over all rows, made in `passes`."""
    student, teacher = models
    learner = Learner(student, objective)
    learner.zero_grad()
    coefficients = objective.coefficients(rows, [row for chosen in passes for row in chosen])
    total = 0.0
    for chosen in passes:
        batch = collate(rows, chosen, (0, 0), CPU)
        with torch.no_grad():
            view = objective.teacher_view
            seen = observe(teacher, view, batch.teacher_input_ids, batch.teacher_attention_mask, precision="float32")
        loss = sum(value * coefficients[name] for name, value in learner(batch, seen).items())
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in learner.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("passes", [[[0, 1, 2], [3, 4, 5, 6]], [[6], [5, 4], [3, 2, 1, 0]], [[i] for i in range(7)]])
def test_a_step_cut_into_passes_has_the_gradient_of_the_whole(models, rows, passes):
    loss, whole = gradients(models, rows, [[0, 1, 2, 3, 4, 5, 6]])
    cut_loss, cut = gradients(models, rows, passes)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert cut.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=1e-6, rtol=1e-4)


def test_each_sum_is_divided_by_what_counts(rows):
    coefficients = OBJECTIVE.coefficients(rows, [0, 2, 6])
    assert coefficients["soft_targets"] == pytest.approx(0.7 / 3)
    # 4 of 7 rows are labelled: 3 rows hold 12/7 labels on average
    assert coefficients["cross_entropy"] == pytest.approx(0.3 / (3 * 4 / 7))
    # row 6 is cut otherwise by the teacher's tokenizer: 2 + 4 positions count, for each of 2 layer pairs
    assert coefficients["hidden_states"] == pytest.approx(0.4 / (6 * 2))
    assert coefficients["attention_relations"] == pytest.approx(0.3 / 6)


def test_the_steps_of_an_epoch_average_to_the_corpus_however_labels_fall(models, rows):
    objective = Objective(alpha=0.7, temperature=2.0)
    _, whole = gradients(models, rows, [[0, 1, 2, 3, 4, 5, 6]], objective)
    # the unlabelled rows apart from the others, as sorting by length may put them
    steps = [[0, 1], [3, 5], [2, 4], [6]]
    parts = [(len(step), gradients(models, rows, [step], objective)[1]) for step in steps]
    for name, gradient in whole.items():
        mean = sum(size * part[name] for size, part in parts) / 7
        torch.testing.assert_close(mean, gradient, atol=1e-6, rtol=1e-4)


def test_rows_that_cannot_be_compared_do_not_touch_the_matching_losses(models, rows):
    objective = Objective(
        alpha=1.0, hidden_state_weight=1.0, layer_map=((1, 3),), attention_relation_weight=1.0,
        relation_layers=(1, 3), relation_heads=2,
    )  # fmt: skip
    student, teacher = models
    learner = Learner(student, objective)
    batch = collate(rows, [6], (0, 0), CPU)
    seen = observe(
        teacher, objective.teacher_view, batch.teacher_input_ids, batch.teacher_attention_mask, precision="float32"
    )
    sums = learner(batch, seen)
    assert sums["hidden_states"].item() == 0
    assert sums["attention_relations"].item() == 0


def test_a_student_of_another_size_gets_projections_that_learn(rows):
    student, teacher = pico_loaded(layers=2, seed=1).model, pico_loaded(layers=4).model
    learner = Learner(student, OBJECTIVE, teacher_size=48)
    assert set(learner.matcher.projections) == {"0", "1"}
    assert learner.matcher.projections["0"].weight.shape == (48, 32)
    assert not Learner(student, OBJECTIVE, teacher_size=32).matcher.projections
    batch = collate(rows, [0, 3], (0, 0), CPU)
    view = OBJECTIVE.teacher_view
    seen = observe(teacher, view, batch.teacher_input_ids, batch.teacher_attention_mask, precision="float32")
    widened = {layer: torch.nn.functional.pad(states, (0, 16)) for layer, states in seen.layers.hidden_states.items()}
    learner(batch, Observation(seen.logits, LayerOutputs(widened, seen.layers.projections)))["hidden_states"].backward()
    assert learner.matcher.projections["0"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_queries_keys_and_values_are_found_in_every_encoder(architecture):
    model = pico_loaded(architecture=architecture).model
    ids = torch.tensor([[1, 9, 8, 7, 2], [1, 9, 8, 7, 2]])
    if architecture == "albert":
        with pytest.raises(UnsupportedError, match="share weights"):
            find_projections(model, 3)
        return
    with torch.no_grad():
        seen = observe(model, View((0, 3), 3), ids, torch.ones_like(ids), precision="float32")
    assert seen.layers.projections.keys() == {"query", "key", "value"}
    assert {value.shape for value in seen.layers.projections.values()} == {(2, 5, 32)}
    assert seen.layers.hidden_states.keys() == {0, 3}
    assert seen.layers.hidden_states[3].shape == (2, 5, 32)
    assert not any(module._forward_hooks for module in find_projections(model, 3).modules.values())


def test_the_projections_seen_are_those_of_the_layer_asked_for():
    model = pico_loaded(layers=4).model
    ids = torch.tensor([[1, 9, 8, 2]])
    with torch.no_grad():
        seen = observe(model, View((1,), 2), ids, torch.ones_like(ids), precision="float32")
        attention = model.bert.encoder.layer[2].attention.self
        torch.testing.assert_close(seen.layers.projections["key"], attention.key(seen.layers.hidden_states[1]))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(3, 6, (1, 3, 5)), (2, 6, (2, 5)), (4, 6, (1, 2, 4, 5)), (3, 3, (0, 1, 2)), (1, 12, (11,)), (6, 3, None)],
)
def test_student_layers_are_spread_over_the_teacher_to_its_last(student, teacher, expected):
    found = spaced_layers(student, teacher)
    assert [own for own, _ in found] == list(range(student))
    assert found[-1][1] == teacher - 1
    if expected:
        assert tuple(aim for _, aim in found) == expected
