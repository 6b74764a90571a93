import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, RobertaConfig
from transformers import RobertaForSequenceClassification as RobertaClassifier

from edgekit.errors import ModelError
from edgekit.models.structure import find_embeddings
from edgekit.pruning.embeddings import cut_embeddings, token_ids_of
from tests.pico import ARCHITECTURES, pico_loaded

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_and_outputs_of_kept_tokens_are_equal_to_the_bit(architecture: str) -> None:
    loaded = pico_loaded(architecture=architecture)
    model, pad_id = loaded.model, loaded.tokenizer.pad_token_id
    kept = sorted({*range(5), *range(5, len(loaded.tokenizer), 2)})
    student = cut_embeddings(model, kept)
    assert student.config.vocab_size == len(kept)
    assert torch.equal(
        find_embeddings(student).word.module.weight, find_embeddings(model).word.module.weight[torch.tensor(kept)]
    )
    new_ids = torch.randint(5, len(kept), (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(new_ids)
    mask[1, 7:] = 0
    new_ids[mask == 0] = kept.index(pad_id)
    with torch.no_grad():
        found = student(input_ids=new_ids, attention_mask=mask).logits
        expected = model(input_ids=torch.tensor(kept)[new_ids], attention_mask=mask).logits
    assert torch.equal(found, expected)


def test_token_ids_in_the_configuration_follow_and_those_of_dropped_tokens_go() -> None:
    config = RobertaConfig(
        **SIZES, vocab_size=40, max_position_embeddings=34, pad_token_id=6, bos_token_id=2, eos_token_id=[3, 9, 4]
    )
    config.mask_token_id = 30
    model = RobertaClassifier(config).eval()
    student = cut_embeddings(model, [2, 4, 6, 9, *range(10, 30)])
    assert student.config.pad_token_id == find_embeddings(student).word.module.padding_idx == 2
    assert student.config.bos_token_id == 0
    assert student.config.eos_token_id == [3, 1]
    assert student.config.mask_token_id is None
    assert dict(token_ids_of(model.config))["pad_token_id"] == 6


def test_positions_counted_from_the_padding_id_move_along() -> None:
    """RoBERTa's first position is row `pad_token_id + 1`: a smaller padding id must not shift what a position means."""
    config = RobertaConfig(**SIZES, vocab_size=40, max_position_embeddings=37, pad_token_id=6)
    model = RobertaClassifier(config).eval()
    kept = [0, 2, 6, *range(10, 40)]
    student = cut_embeddings(model, kept)
    ids = torch.randint(3, len(kept), (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 12:], mask[1, 12:] = 2, 0
    with torch.no_grad():
        found = student(input_ids=ids, attention_mask=mask).logits
        expected = model(input_ids=torch.tensor(kept)[ids], attention_mask=mask).logits
    assert torch.equal(found, expected)
    before, after = find_embeddings(model).position, find_embeddings(student).position
    assert before is not None
    assert after is not None
    assert (before.offset, after.offset) == (7, 3)
    assert before.positions == after.positions == 30
    assert student.config.max_position_embeddings == 33


def test_an_output_table_follows_and_a_tied_one_stays_tied() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=40)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    kept = [0, 3, *range(10, 30)]
    student = cut_embeddings(model, kept)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        found = student(input_ids=ids).logits
        expected = model(input_ids=torch.tensor(kept)[ids]).logits[..., kept]
    torch.testing.assert_close(found, expected)
    assert torch.equal(student.cls.predictions.bias, model.cls.predictions.bias[kept])


def test_generation_settings_of_a_decoder_follow() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, bos_token_id=38, eos_token_id=39)
    student = cut_embeddings(GPT2LMHeadModel(config), [1, 2, 38, 39])
    assert (student.config.bos_token_id, student.config.eos_token_id) == (2, 3)
    assert (student.generation_config.bos_token_id, student.generation_config.eos_token_id) == (2, 3)
    assert student.lm_head.weight is student.get_input_embeddings().weight


def test_a_tokenizer_of_another_model_is_refused() -> None:
    loaded = pico_loaded()
    with pytest.raises(ModelError, match=r"has the id 500, the model only 168 rows in 'bert\.embeddings"):
        cut_embeddings(loaded.model, [0, 1, 500])
    with pytest.raises(ModelError, match="pad_token_id: found 0, which is no token"):
        cut_embeddings(loaded.model, [1, 2, 3])
