"""Which modules are quantized, and how: patterns, their order, and what they do not match."""

from __future__ import annotations

import pytest
from torch import nn

from edgekit.errors import UsageError
from edgekit.models.quantized import Scheme
from edgekit.quantization.scheme import MINIMUM_ROWS, Rules, choose_schemes, matches

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
    return choose_schemes(Network(), Rules(linears=INT8, embeddings=TABLE, **rules), outputs=3)


EVERYTHING = {f"layers.{index}.{name}": INT8 for index in (0, 1) for name in ("query", "output")} | {"words": TABLE}


def test_all_linears_but_the_output_layer_and_all_large_tables():
    assert chosen() == EVERYTHING


def test_the_output_layer_is_quantized_when_it_is_named():
    assert chosen(overrides=[("classifier", GROUPS)]) == EVERYTHING | {"classifier": GROUPS}


def test_the_first_override_wins_and_exclude_comes_before_all():
    found = chosen(overrides=[("*.query", GROUPS), ("layers.0", TABLE)], exclude=["layers.1.output", "words"])
    assert found == {"layers.0.query": GROUPS, "layers.0.output": TABLE, "layers.1.query": GROUPS}


def test_tables_stay_float_without_a_scheme_for_them():
    found = choose_schemes(Network(), Rules(linears=INT8, embeddings=None), outputs=3)
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
