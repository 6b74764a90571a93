import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import find_layers
from edgekit.pruning.cut import Cut, cut_model, require_same_outputs
from edgekit.pruning.feed_forward import (
    choose_neurons,
    cut_feed_forwards,
    find_feed_forwards,
    mask_neurons,
    measure_neurons,
)
from tests.pico import ARCHITECTURES, pico_loaded
from tests.pruning.batches import batches_for


def drawn_neurons(model, size, seed=0):
    generator = np.random.default_rng(seed)
    blocks = find_feed_forwards(model)
    return tuple(tuple(sorted(generator.choice(block.size, size, replace=False).tolist())) for block in blocks)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cut_model_computes_what_the_whole_one_does_with_the_neurons_at_zero(architecture: str) -> None:
    loaded = pico_loaded(architecture=architecture)
    neurons = drawn_neurons(loaded.model, 10)
    student = cut_feed_forwards(loaded.model, neurons)
    assert {block.size for block in find_feed_forwards(student)} == {10}
    assert student.num_parameters() < loaded.model.num_parameters()
    for ids, mask in batches_for(loaded):
        with torch.no_grad(), mask_neurons(loaded.model, dict(enumerate(neurons))):
            expected = loaded.model(input_ids=ids, attention_mask=mask).logits
        with torch.no_grad():
            found = student(input_ids=ids, attention_mask=mask).logits
            whole = loaded.model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(found, whole, atol=1e-5), "the neurons made no difference, so nothing was tested"


@pytest.mark.parametrize("architecture", ["bert", "albert", "modernbert", "distilbert"])
def test_scores_against_numpy_in_float64(architecture: str) -> None:
    loaded = pico_loaded(architecture=architecture)
    blocks = find_feed_forwards(loaded.model)
    seen: list[list[np.ndarray]] = [[] for _ in blocks]
    batches = batches_for(loaded)
    for index, block in enumerate(blocks):
        original = block.down.module.forward

        def forward(hidden, _original=original, _seen=seen[index]):
            _seen.append(hidden.numpy().astype(np.float64))
            return _original(hidden)

        block.down.module.forward = forward
    with torch.no_grad():
        for ids, mask in batches:
            loaded.model(input_ids=ids, attention_mask=mask)
    expected = []
    for block, own in zip(blocks, seen, strict=True):
        calls = len(own) // len(batches)
        masks = [mask.numpy().astype(bool) for _, mask in batches for _ in range(calls)]
        activations = np.concatenate([hidden[mask] for hidden, mask in zip(own, masks, strict=True)])
        weight = block.down.module.weight.detach().numpy().astype(np.float64)
        tokens = sum(int(mask.sum()) for _, mask in batches)
        expected.append(np.sqrt((activations**2).sum(axis=0) / tokens) * np.sqrt((weight**2).sum(axis=0)))
    for found, wanted in zip(measure_neurons(loaded.model, batches), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_the_neurons_that_add_most_stay_and_of_equals_the_first() -> None:
    scores = [torch.tensor([1.0, 3.0, 3.0, 2.0]), torch.tensor([0.0, 0.0, 0.0, 5.0])]
    assert choose_neurons(scores, 2) == ((1, 2), (0, 3))


def test_decoders_with_transposed_weights() -> None:
    model = GPT2ForSequenceClassification(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=64, vocab_size=50, bos_token_id=0, eos_token_id=1)
    ).eval()
    cut = Cut(neurons=drawn_neurons(model, 24))
    student = cut_model(model, cut)
    require_same_outputs(model, student, cut, seed=0)
    assert student.config.n_inner == 24


@pytest.mark.parametrize("architecture", ["bert", "albert"])
def test_layers_and_neurons_together(architecture: str) -> None:
    model = pico_loaded(architecture=architecture).model
    owners = 1 if find_layers(model).shared else 2
    cut = Cut(layers=(1, 3), neurons=drawn_neurons(model, 10)[:owners])
    student = cut_model(model, cut)
    require_same_outputs(model, student, cut, seed=0)
    other = Cut(layers=(1, 3), neurons=drawn_neurons(model, 10, seed=5)[:owners])
    with pytest.raises(UnsupportedError, match="outputs differ by"):
        require_same_outputs(model, student, other, seed=0)


def test_more_neurons_than_there_are_is_an_error() -> None:
    model = pico_loaded().model
    size = find_feed_forwards(model)[0].size
    with pytest.raises(UsageError, match=f"intermediate_size: found {size + 1}, expected 1 to {size}"):
        cut_feed_forwards(model, tuple(tuple(range(size + 1)) for _ in range(4)))


def test_a_configuration_that_does_not_state_the_width_is_refused() -> None:
    model = pico_loaded().model
    model.config.intermediate_size = 999
    with pytest.raises(UnsupportedError, match=r"none of intermediate_size, .* is \d+, the width"):
        cut_feed_forwards(model, drawn_neurons(model, 5))
