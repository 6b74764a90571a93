import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel

from edgekit.errors import ModelError, UsageError
from edgekit.pruning.importance import measure_importance
from tests.pico import pico_loaded
from tests.pruning.batches import batches_for


class Turn(nn.Module):
    def __init__(self, degrees: float) -> None:
        super().__init__()
        angle = math.radians(degrees)
        cosine, sine = math.cos(angle), math.sin(angle)
        self.register_buffer("matrix", torch.tensor([[cosine, sine], [-sine, cosine]]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 3 * hidden_states @ self.matrix


class Turner(PreTrainedModel):
    """Three layers that turn a vector by 90, 0 and 60 degrees, whatever its length."""

    config_class = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([Turn(90), Turn(0), Turn(60)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.stack((input_ids.float(), torch.ones_like(input_ids)), dim=-1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_importance_by_hand() -> None:
    model = Turner(BertConfig(num_hidden_layers=3))
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    importance = measure_importance(model, [(ids, (ids > 0).long())])
    assert importance.block_influence == pytest.approx((1.0, 0.0, 0.5), abs=1e-6)
    assert importance.angular_distance == pytest.approx((1 / 2, 0.0, 1 / 3), abs=1e-3)
    assert importance.tokens == 5


def test_outputs_that_are_no_numbers_say_nothing_of_importance() -> None:
    model = Turner(BertConfig(num_hidden_layers=3))
    ids = torch.tensor([[1, 2, 3]])
    next(module for module in model.modules() if isinstance(module, Turn)).matrix.fill_(float("nan"))
    with pytest.raises(ModelError, match="layers whose outputs are not finite numbers"):
        measure_importance(model, [(ids, torch.ones_like(ids))])


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet", "albert", "modernbert"])
def test_importance_against_numpy_in_float64(architecture: str) -> None:
    loaded = pico_loaded(architecture=architecture)
    batches = batches_for(loaded)
    found = measure_importance(loaded.model, batches)

    cosines: list[list[float]] = [[] for _ in range(4)]
    for ids, mask in batches:
        recorded: list[np.ndarray] = []
        with torch.no_grad():
            states = loaded.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        recorded = [state.numpy().astype(np.float64) for state in states]
        for layer in range(3):  # the last state may have passed a final norm
            before, after = recorded[layer][mask.numpy() == 1], recorded[layer + 1][mask.numpy() == 1]
            norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
            cosines[layer].extend((before * after).sum(-1) / norms)
    for layer in range(3):
        assert found.block_influence[layer] == pytest.approx(1 - np.mean(cosines[layer]), abs=1e-12)
        assert found.angular_distance[layer] == pytest.approx(np.mean(np.arccos(cosines[layer])) / np.pi, abs=1e-9)
    assert found.tokens == 5 + 24 + 5 + 7


def test_padding_never_counts() -> None:
    loaded = pico_loaded()
    ids = torch.randint(6, 100, (2, 8), generator=torch.Generator().manual_seed(2))
    padded = torch.cat([ids, torch.zeros(2, 9, dtype=torch.int64)], dim=1)
    mask = (padded > 0).long()
    plain = measure_importance(loaded.model, [(ids, torch.ones_like(ids))])
    longer = measure_importance(loaded.model, [(padded, mask)])
    assert longer.block_influence == pytest.approx(plain.block_influence, abs=1e-6)


def test_no_token_at_all_is_an_error() -> None:
    with pytest.raises(UsageError, match="found no token"):
        measure_importance(pico_loaded().model, [])
