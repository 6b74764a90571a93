from collections import Counter

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FNetConfig,
    PreTrainedModel,
    XLMConfig,
)

from edgekit.errors import UnsupportedError
from edgekit.models.quantized import Scheme, install
from edgekit.models.structure import find_embeddings, find_layers, find_linears, find_structure, read_sizes
from tests.pico import ARCHITECTURES, pico_loaded

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
SPLIT = ["query", "key", "value"]
FEED_FORWARD = ["feed_forward_up", "feed_forward_down"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_of_every_architecture_has_its_part(architecture: str) -> None:
    model = pico_loaded(architecture=architecture).model
    structure = find_structure(model)
    projections = ["query_key_value"] if architecture == "modernbert" else SPLIT
    for layer in range(len(structure.stack.layers)):
        roles = Counter(linear.role for linear in structure.linears if linear.layer == layer)
        assert roles == Counter([*projections, "attention_output", *FEED_FORWARD])
    outside = {linear.name: linear.role for linear in structure.linears if linear.layer is None}
    projected = {"electra": "electra.embeddings_project", "albert": "albert.encoder.embedding_hidden_mapping_in"}
    assert {name for name, role in outside.items() if role == "embedding_projection"} == (
        {projected[architecture]} if architecture in projected else set()
    )
    assert [name for name, role in outside.items() if role == "head" and name.startswith("classifier")]
    assert {linear.name for linear in structure.linears} == {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    assert all(model.get_submodule(linear.name) is linear.module for linear in structure.linears)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_sizes_and_tables_are_found(architecture: str) -> None:
    loaded = pico_loaded(architecture=architecture, layers=3)
    structure = find_structure(loaded.model)
    assert (structure.sizes.layers, structure.sizes.hidden_size, structure.sizes.attention_heads) == (3, 32, 4)
    assert structure.sizes.vocabulary_size == structure.embeddings.word.rows == len(loaded.tokenizer)
    assert structure.embeddings.word.module is loaded.model.get_input_embeddings()
    assert structure.stack.applications == 3
    assert structure.stack.shared == (architecture == "albert")
    assert len(structure.stack.layers) == (1 if architecture == "albert" else 3)
    for index, layer in enumerate(structure.stack.layers):
        assert loaded.model.get_submodule(structure.stack.name_of(index)) is layer
    position = structure.embeddings.position
    if architecture in ("deberta-v2", "modernbert"):
        assert position is None
    else:
        assert position is not None
        assert position.positions == 64
        assert position.offset == (2 if architecture in ("roberta", "xlm-roberta", "mpnet") else 0)


def test_roles_are_looked_up_by_layer() -> None:
    structure = find_structure(pico_loaded().model)
    assert [linear.name for linear in structure.of_role("query", "value", layer=2)] == [
        "bert.encoder.layer.2.attention.self.query",
        "bert.encoder.layer.2.attention.self.value",
    ]
    assert len(structure.of_role("feed_forward_down")) == 4


def test_a_quantized_linear_keeps_its_part() -> None:
    model = pico_loaded().model
    before = [(linear.name, linear.role) for linear in find_linears(model)]
    install(model, {name: Scheme() for name, _ in before} | {"bert.embeddings.word_embeddings": Scheme()})
    assert [(linear.name, linear.role) for linear in find_linears(model)] == before
    assert find_embeddings(model).word.name == "bert.embeddings.word_embeddings"


@pytest.mark.parametrize(
    ("kind", "extra", "projections"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4}, ["query_key_value"]),
        ("llama", {}, SPLIT),
        ("gpt_neox", {}, ["query_key_value"]),
    ],
)
def test_decoders_need_no_case_of_their_own(kind: str, extra: dict[str, int], projections: list[str]) -> None:
    sizes = {"vocab_size": 50} if kind == "gpt2" else SIZES
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **extra, **ids))
    structure = find_structure(model)
    gate = ["feed_forward_gate"] if kind == "llama" else []
    roles = [linear.role for linear in structure.linears if linear.layer == 1]
    assert sorted(roles) == sorted([*projections, "attention_output", *gate, *FEED_FORWARD])
    assert [linear.name for linear in structure.of_role("head")] == [
        name for name, module in model.named_modules() if module is model.get_output_embeddings()
    ]
    assert (structure.embeddings.position is not None) == (kind == "gpt2")


def test_layers_kept_in_several_lists_are_refused_by_name() -> None:
    config = XLMConfig(vocab_size=50, emb_dim=32, n_layers=3, n_heads=4)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UnsupportedError, match=r"'xlm'.*transformer\.attentions \(3\).*exactly one of 3 layers"):
        find_layers(model)


def test_a_missing_size_is_named() -> None:
    config = FNetConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, intermediate_size=64)
    with pytest.raises(UnsupportedError, match=r"'fnet'.*found None as 'num_attention_heads'"):
        read_sizes(config)
    assert len(find_layers(AutoModelForSequenceClassification.from_config(config)).layers) == 3


def test_a_model_that_looks_nothing_up_is_refused() -> None:
    class Deaf(PreTrainedModel):
        config_class = AutoConfig.for_model("bert").__class__

        def get_input_embeddings(self) -> nn.Module:
            return nn.Linear(2, 2)

    with pytest.raises(UnsupportedError, match="found Linear as input embeddings"):
        find_embeddings(Deaf(AutoConfig.for_model("bert")))


def test_a_single_layer_is_told_from_other_lists_of_one() -> None:
    model = pico_loaded(architecture="bert", layers=1).model
    model.extra = nn.ModuleList([nn.Linear(2, 2)])
    assert find_layers(model).name == "bert.encoder.layer"
    assert torch.is_tensor(find_layers(model).layers[0].output.dense.weight)
