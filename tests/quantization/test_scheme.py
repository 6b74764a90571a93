"""Which modules are quantized, and how: patterns, their order, and what they do not match."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.models.quantized import Scheme
from edgekit.quantization.scheme import MINIMUM_ROWS, Rules, choose_schemes, find_classifier, matches
from tests.pico import ARCHITECTURES, pico_loaded

INT8, GROUPS, TABLE = Scheme(), Scheme(group_size=32), Scheme(activations="float")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.output = nn.Linear(8, 8)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(MINIMUM_ROWS, 8)
        self.types = nn.Embedding(MINIMUM_ROWS - 1, 8)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.classifier = nn.Linear(8, 3)


def chosen(**rules) -> dict[str, Scheme]:
    return choose_schemes(Network(), Rules(linears=INT8, embeddings=TABLE, **rules), labels=3)


EVERYTHING = {f"layers.{index}.{name}": INT8 for index in (0, 1) for name in ("query", "output")} | {"words": TABLE}


def test_all_linears_but_the_output_layer_and_all_large_tables():
    assert chosen() == EVERYTHING


def test_a_hidden_linear_as_wide_as_the_labels_are_many_is_no_output_layer():
    network = Network()
    network.classifier = nn.Linear(8, 8)
    found = choose_schemes(network, Rules(linears=INT8, embeddings=TABLE), labels=8)
    assert found == EVERYTHING


@pytest.mark.parametrize("labels", [3, 32])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_linear_that_gives_the_logits_is_found_also_among_others_as_wide(architecture: str, labels: int) -> None:
    loaded = pico_loaded(architecture=architecture, labels=[f"label {index}" for index in range(labels)])
    linears = [module for module in loaded.model.modules() if isinstance(module, nn.Linear)]
    assert labels != 32 or sum(module.out_features == 32 for module in linears) > 4, "32 is also the hidden size"
    gave: list[tuple[nn.Module, torch.Tensor]] = []
    for module in linears:
        module.register_forward_hook(lambda module, inputs, output: gave.append((module, output)))
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    giver = next(module for module, output in gave if torch.equal(output, logits))
    assert find_classifier(loaded.model, labels) is giver
    assert find_classifier(loaded.model, labels + 1) is None


def test_the_output_layer_is_quantized_when_it_is_named():
    assert chosen(overrides=[("classifier", GROUPS)]) == EVERYTHING | {"classifier": GROUPS}


def test_the_first_override_wins_and_exclude_comes_before_all():
    found = chosen(overrides=[("*.query", GROUPS), ("layers.0", TABLE)], exclude=["layers.1.output", "words"])
    assert found == {"layers.0.query": GROUPS, "layers.0.output": TABLE, "layers.1.query": GROUPS}


def test_tables_stay_float_without_a_scheme_for_them():
    found = choose_schemes(Network(), Rules(linears=INT8, embeddings=None), labels=3)
    assert found == {name: scheme for name, scheme in EVERYTHING.items() if name != "words"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"exclude": ["layer.0"]}, r"exclude: 'layer.0' matches no linear or embedding. Did you mean 'layers.0'"),
        ({"overrides": [("words", GROUPS)]}, "overrides: 'words' matches no linear"),
        ({"exclude": ["*"]}, "found nothing to quantize"),
    ],
)
def test_what_matches_nothing_or_leaves_nothing_is_refused(rules, message):
    with pytest.raises(UsageError, match=message):
        chosen(**rules)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("layers.0.query", "layers.0", True),
        ("layers.0.query", "*.query", True),
        ("layers.0.query", "layers.[12]", False),
        ("layers.10.query", "layers.1", False),
        ("layers.0.query", "query", False),
    ],
)
def test_a_pattern_names_a_module_or_one_around_it(name, pattern, expected):
    assert matches(name, pattern) is expected
