import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import LayerStack, find_layers
from edgekit.pruning.layers import (
    check_count,
    check_indices,
    choose_by_influence,
    choose_uniformly,
    cut_layers,
    pinned_layers,
    skip_layers,
)
from tests.pico import ARCHITECTURES, pico_loaded


def stack_of(count: int) -> LayerStack:
    return LayerStack("layers", tuple(nn.Linear(2, 2) for _ in range(count)), count)


def batch(pad_id: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 100, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    ids[mask == 0] = pad_id
    return {"input_ids": ids, "attention_mask": mask}


def forward_without(model: PreTrainedModel, dropped: set[int], inputs: dict[str, Tensor]) -> Tensor:
    """The reference: each layer's forward is replaced by one that hands its input on."""
    stack = find_layers(model)
    call = iter(range(stack.applications))
    originals = [layer.forward for layer in stack.layers]
    for layer, original in zip(stack.layers, originals, strict=True):

        def forward(hidden_states, *args, _original=original, **kwargs):  # type: ignore[no-untyped-def]
            output = _original(hidden_states, *args, **kwargs)
            if next(call) not in dropped:
                return output
            return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

        layer.forward = forward  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            return model(**inputs).logits
    finally:
        for layer, original in zip(stack.layers, originals, strict=True):
            layer.forward = original  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (3, 6, (1, 3, 5)),
        (4, 6, (0, 2, 3, 5)),
        (1, 6, (5,)),
        (2, 12, (5, 11)),
        (6, 12, (1, 3, 5, 7, 9, 11)),
        (2, 2, (0, 1)),
    ],
)
def test_uniform_choice_by_hand(count: int, total: int, expected: tuple[int, ...]) -> None:
    assert choose_uniformly(count, stack_of(total)) == expected


@given(st.integers(1, 30), st.data())
def test_uniform_choice_is_distinct_and_spread_to_the_last(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    chosen = choose_uniformly(count, stack_of(total))
    gaps = [after - before for before, after in zip((-1, *chosen), chosen, strict=False)]
    assert len(chosen) == count
    assert chosen[-1] == total - 1
    assert max(gaps) - min(gaps) <= 1


def test_the_layers_that_change_most_stay_and_the_earlier_of_equals() -> None:
    stack = stack_of(5)
    assert choose_by_influence(2, stack, [0.1, 0.4, 0.2, 0.3, 0.1]) == (1, 3)
    assert choose_by_influence(2, stack, [0.2, 0.2, 0.2, 0.1, 0.2]) == (0, 1)


def test_a_first_layer_that_is_built_differently_always_stays() -> None:
    model = pico_loaded(architecture="modernbert").model
    stack = find_layers(model)
    assert pinned_layers(stack) == (0,)
    assert choose_uniformly(1, stack) == (0,)
    assert choose_uniformly(2, stack) == (0, 3)
    assert choose_by_influence(2, stack, [0.0, 0.1, 0.3, 0.2]) == (0, 2)
    with pytest.raises(UnsupportedError, match=r"layer 0 of model type 'modernbert'.*Keep it"):
        cut_layers(model, [1, 3])


@pytest.mark.parametrize("count", [0, 5, -1])
def test_more_layers_than_there_are_and_none_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=rf"^layers: found {count}, expected 1 to 4"):
        check_count(count, stack_of(4))


@pytest.mark.parametrize("kept", [[4], [-1], [1, 1], []])
def test_layers_that_the_model_does_not_have_are_refused(kept: list[int]) -> None:
    with pytest.raises(UsageError, match=r"keep_layers: found \[.*, expected distinct indices from 0 to 3"):
        check_indices(kept, stack_of(4))


@pytest.mark.parametrize(
    ("architecture", "kept"),
    [
        (architecture, kept)
        for architecture in ARCHITECTURES
        for kept in [(0,), (0, 2), (0, 3), (1, 3), (2,), (0, 1, 2, 3)]
        if architecture != "modernbert" or 0 in kept
    ],
)
def test_the_cut_model_is_the_teacher_with_layers_skipped_to_the_bit(architecture: str, kept: tuple[int, ...]) -> None:
    loaded = pico_loaded(architecture=architecture)
    inputs = batch(loaded.tokenizer.pad_token_id)
    expected = forward_without(loaded.model, set(range(4)) - set(kept), inputs)
    student = cut_layers(loaded.model, kept)
    with torch.no_grad():
        found = student(**inputs).logits
        whole = loaded.model(**inputs).logits
        with skip_layers(loaded.model, kept):
            skipped = loaded.model(**inputs).logits
        again = loaded.model(**inputs).logits
    assert torch.equal(found, expected)
    assert torch.equal(skipped, expected)
    assert torch.equal(again, whole)
    assert torch.equal(found, whole) == (len(kept) == 4)
    assert student.config.num_hidden_layers == len(kept)
    assert find_layers(student).applications == len(kept)


def test_indices_and_lists_of_layers_in_the_configuration_follow() -> None:
    model = pico_loaded(architecture="modernbert").model
    assert model.config.layer_types == ["full_attention", "sliding_attention"] * 2
    student = cut_layers(model, [3, 0])
    assert student.config.layer_types == ["full_attention", "sliding_attention"]
    assert model.config.num_hidden_layers == len(model.config.layer_types) == 4
    bert = cut_layers(pico_loaded().model, [1, 3])
    indices = [getattr(module, "layer_idx", None) for module in bert.modules()]
    assert {index for index in indices if index is not None} <= {0, 1}


def test_shared_layers_are_applied_less_often_and_lose_no_weight() -> None:
    model = pico_loaded(architecture="albert").model
    student = cut_layers(model, [2])
    assert student.num_parameters() == model.num_parameters()
    assert student.config.num_hidden_layers == 1


def test_layers_that_are_shared_in_groups_are_refused() -> None:
    loaded = pico_loaded(architecture="albert")
    config = loaded.model.config
    config.inner_group_num = 2
    with pytest.raises(UnsupportedError, match=r"'albert' applies 2 layers 4 times"):
        cut_layers(type(loaded.model)(config), [0, 1])


def test_the_cut_draws_no_random_numbers_and_keeps_the_mode() -> None:
    model = pico_loaded().model.train()
    state = torch.get_rng_state()
    assert cut_layers(model, [0]).training
    assert torch.equal(torch.get_rng_state(), state)
