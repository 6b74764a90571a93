import pytest
import torch

from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.structure import find_embeddings
from edgekit.pruning.positions import cut_positions
from tests.pico import ARCHITECTURES, pico_loaded


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {"deberta-v2", "modernbert"}))
def test_texts_that_still_fit_give_the_same_bits(architecture: str) -> None:
    loaded = pico_loaded(architecture=architecture)
    student = cut_positions(loaded.model, 20)
    ids = torch.randint(6, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[2, 11:] = 0
    ids[mask == 0] = loaded.tokenizer.pad_token_id
    with torch.no_grad():
        assert torch.equal(
            student(input_ids=ids, attention_mask=mask).logits, loaded.model(input_ids=ids, attention_mask=mask).logits
        )
    table = find_embeddings(student).position
    assert table is not None
    assert table.positions == 20
    assert student.config.max_position_embeddings == 20 + table.offset
    assert loaded.model.config.max_position_embeddings == 64 + table.offset


def test_more_positions_than_there_are_is_an_error() -> None:
    with pytest.raises(UsageError, match="max_positions: found 65, expected 1 to 64"):
        cut_positions(pico_loaded(architecture="roberta").model, 65)


@pytest.mark.parametrize("architecture", ["deberta-v2", "modernbert"])
def test_relative_positions_have_nothing_to_cut(architecture: str) -> None:
    with pytest.raises(UnsupportedError, match="no learned table of absolute positions"):
        cut_positions(pico_loaded(architecture=architecture).model, 20)
