import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from edgekit.errors import ModelError, UnsupportedError
from edgekit.pruning.cut import Cut, cut_model, require_same_outputs, require_same_tokens
from edgekit.pruning.rebuild import copy_config, rebuild
from tests.pico import ARCHITECTURES, pico_loaded
from tests.pruning.tokenizers_in_code import wordpiece

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_cuts_together_pass_the_check_and_a_changed_weight_does_not(architecture: str) -> None:
    model = pico_loaded(architecture=architecture).model
    positions = None if architecture in ("deberta-v2", "modernbert") else 16
    cut = Cut(layers=(0, 2), token_ids=(*range(5), *range(20, 90)), positions=positions)
    student = cut_model(model, cut)
    require_same_outputs(model, student, cut, seed=0)
    with torch.no_grad():
        student.get_input_embeddings().weight.neg_()
    with pytest.raises(UnsupportedError, match="outputs differ by"):
        require_same_outputs(model, student, cut, seed=0)


def test_other_layers_than_those_said_do_not_pass() -> None:
    model = pico_loaded().model
    student = cut_model(model, Cut(layers=(0, 2)))
    with pytest.raises(UnsupportedError, match="outputs differ by"):
        require_same_outputs(model, student, Cut(layers=(0, 3)), seed=0)


def test_a_model_whose_outputs_are_no_numbers_is_told_from_one_that_cannot_be_cut() -> None:
    model = pico_loaded().model
    cut = Cut(layers=(0, 2))
    with torch.no_grad():
        model.get_input_embeddings().weight[20:60] = 3e38
    with pytest.raises(ModelError, match="outputs of the uncut model are not all finite on random tokens"):
        require_same_outputs(model, cut_model(model, cut), cut, seed=0)


def test_an_architecture_that_ties_a_layer_to_its_place_is_refused() -> None:
    """DeBERTa-v2's convolution joins the first layer, whichever that is: a cut model would apply it elsewhere."""
    config = DebertaV2Config(**SIZES, conv_kernel_size=3, relative_attention=True, initializer_range=0.2)
    model = DebertaV2ForSequenceClassification(config).eval()
    cut = Cut(layers=(1, 2))
    with pytest.raises(UnsupportedError, match=r"'deberta-v2': the cut model's outputs differ by"):
        require_same_outputs(model, cut_model(model, cut), cut, seed=0)
    cut = Cut(layers=(0, 2))
    require_same_outputs(model, cut_model(model, cut), cut, seed=0)


def test_a_decoder_without_a_padding_token_is_checked_row_by_row() -> None:
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    model = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50, **ids)).eval()
    cut = Cut(layers=(0, 2), positions=20, token_ids=(0, 1, *range(5, 30)))
    student = cut_model(model, cut)
    require_same_outputs(model, student, cut, seed=0)
    assert student.config.n_layer == 2


def test_a_part_that_the_configuration_does_not_make_is_refused_by_name() -> None:
    model = pico_loaded().model
    config = copy_config(model)
    config.hidden_size = 16
    with pytest.raises(
        UnsupportedError, match=r"weight 'bert\.embeddings\.word_embeddings\.weight' would have the shape"
    ):
        rebuild(model, config)
    config = copy_config(model)
    config.num_hidden_layers = 5
    with pytest.raises(UnsupportedError, match=r"has a weight 'bert\.encoder\.layer\.4\..*has no"):
        rebuild(model, config)
    config.num_attention_heads = 5
    with pytest.raises(UnsupportedError, match="'bert': transformers cannot build it"):
        rebuild(model, config)


def test_a_tokenizer_that_reads_kept_tokens_otherwise_does_not_pass() -> None:
    whole = wordpiece(["a", "b", "##a", "##b", "ab"])
    require_same_tokens(whole, whole, range(9), ["ab ba", ""])
    with pytest.raises(UnsupportedError, match=r"reads 'ab ba' as \['\[CLS\]', 'a', '##b'.*'\[CLS\]', 'ab', 'b'"):
        require_same_tokens(whole, wordpiece(["a", "b", "##a", "##b"]), range(9), ["a", "ab ba"])
    with pytest.raises(UnsupportedError, match=r"no new unknown ones"):
        require_same_tokens(whole, wordpiece(["a", "b"]), range(6), ["ab ba"])
