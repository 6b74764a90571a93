"""Pruning of language models: each pico decoder, cut, saved and loaded, against its teacher with parts switched off."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.contract import StageContext, StageInputs
from edgekit.data.conversations import template_token_ids
from edgekit.data.documents import Conversation, Document, Message, PlainText, schema_of, to_cells
from edgekit.data.prepared import DataDescription, write_description
from edgekit.models.source import LoadedModel, load_model
from edgekit.models.structure import find_layers
from edgekit.models.tokenizer import NASTY_TEXTS
from edgekit.pruning.embeddings import cut_embeddings
from edgekit.pruning.importance import measure_importance
from edgekit.pruning.layers import cut_layers
from edgekit.pruning.stage import PruneConfig, PruneReport, prune
from edgekit.pruning.vocabulary import read_vocabulary, trim_tokenizer
from tests.pico import publish_model
from tests.pico_decoders import DECODERS, TRAINING_TEXT, pico_byte_tokenizer, pico_decoder
from tests.pruning.test_vocabulary import assert_trimmed_soundly, draw_ids

SENTENCES = [f"{sentence.strip()}." for sentence in TRAINING_TEXT.split(".") if sentence.strip()]
TEXTS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES]
KEPT, NEURONS, SIZE = [0, 1, 3], 24, 285
DOWN = {"gpt2": "mlp.c_proj", "opt": "fc2"}


def publish_documents(out: Path, documents: list[Document], form: str = "text") -> Artifact:
    import pyarrow
    from pyarrow import parquet

    with publish(out, kind="data", lineage=Lineage(stage="source")) as staging:
        table = pyarrow.Table.from_pylist([to_cells(document) for document in documents], schema=schema_of(form))
        parquet.write_table(table, staging / "train.parquet")
        write_description(staging, DataDescription(labels=[], splits={"train": len(documents)}, forms={"train": form}))
    return Artifact.open(out)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish_documents(tmp_path_factory.mktemp("data") / "data", [PlainText(text) for text in TEXTS])


def layers_of(model: Any) -> Any:
    """The layers, found by the attribute that each architecture calls them; independent of what is tested."""
    body = model.base_model
    return body.h if hasattr(body, "h") else body.decoder.layers if hasattr(body, "decoder") else body.layers


@contextmanager
def without(model: Any, kept: list[int], neurons: dict[int, list[int]], down: str) -> Iterator[None]:
    """Lets the other layers hand on their input, and sets the other neurons to zero."""
    handles, originals = [], []
    for index, layer in enumerate(layers_of(model)):
        if index not in kept:
            originals.append((layer, layer.forward))
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        elif neurons:
            mask = torch.zeros(64)
            mask[neurons[index]] = 1
            linear = layer.get_submodule(down)
            handles.append(linear.register_forward_pre_hook(lambda module, args, mask=mask: (args[0] * mask,)))
    try:
        yield
    finally:
        for layer, forward in originals:
            layer.forward = forward
        for handle in handles:
            handle.remove()


def neurons_kept(before: LoadedModel, after: LoadedModel, down: str) -> dict[int, list[int]]:
    """Finds each kept neuron by the weights that read it."""
    found = {}
    for new, old in enumerate(KEPT):
        weights = [
            layers_of(loaded.model)[index].get_submodule(down).weight for loaded, index in ((before, old), (after, new))
        ]
        wide, narrow = (weight if down == "mlp.c_proj" else weight.T for weight in weights)
        found[old] = [next(place for place, row in enumerate(wide) if torch.equal(row, column)) for column in narrow]
    return found


def prune_decoder(architecture: str, tied: bool, data: Artifact, folder: Path, **settings: Any) -> Any:
    loaded = pico_decoder(architecture, tied=tied)
    loaded.model.generation_config.suppress_tokens = [0, 299]
    model = publish_model(loaded, folder / "teacher")
    out = prune(StageInputs(model=model, data=data), PruneConfig(**settings), StageContext(folder / "student"))
    return load_model(model), load_model(out), PruneReport.model_validate_json((out.path / "prune.json").read_text())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_saved_student_computes_what_the_teacher_does_without_those_parts(
    architecture: str, tied: bool, tmp_path: Path, data: Artifact
) -> None:
    before, after, report = prune_decoder(
        architecture, tied, data, tmp_path, keep_layers=KEPT, intermediate_size=NEURONS, vocabulary_size=SIZE
    )
    assert (report.layers_kept, report.intermediate_after, report.vocabulary_after) == (KEPT, NEURONS, SIZE)
    assert after.task == before.task
    old_ids = [before.tokenizer.get_vocab()[token] for token in after.tokenizer.convert_ids_to_tokens(range(SIZE))]
    assert old_ids == sorted(old_ids)
    words = [f" {word}" for word in TRAINING_TEXT.split()]
    same = [word for word in words if before.tokenizer.tokenize(word) == after.tokenizer.tokenize(word)]
    assert len(words) > len(same) > 20
    texts = ["".join(same[start:]) for start in (0, 5, 10, 15)]
    down = DOWN.get(architecture, "mlp.down_proj")
    options = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
    inputs, smaller = before.tokenizer(texts, **options), after.tokenizer(texts, **options)
    with torch.no_grad(), without(before.model, KEPT, neurons_kept(before, after, down), down):
        expected = before.model(**inputs).logits[..., old_ids]
    with torch.no_grad():
        found = after.model(**smaller).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)
    head, table = after.model.get_output_embeddings().weight, after.model.get_input_embeddings().weight
    assert (head.data_ptr() == table.data_ptr()) == tied
    assert head.shape == table.shape == (SIZE, 32)


@pytest.mark.parametrize("architecture", DECODERS)
def test_lists_with_an_entry_a_layer_follow_and_groups_stay_whole(architecture: str, tmp_path: Path) -> None:
    """Gemma 3 and SmolLM3 say for each layer how it attends: a kept layer keeps its manner."""
    loaded = pico_decoder(architecture)
    before = loaded.model.config
    student = cut_layers(loaded.model, [1, 3])
    student.save_pretrained(tmp_path)
    config = type(before).from_pretrained(tmp_path)
    assert config.num_hidden_layers == 2
    for name in ("layer_types", "no_rope_layers"):
        if getattr(before, name, None) is not None:
            assert getattr(config, name) == [getattr(before, name)[1], getattr(before, name)[3]]
    assert getattr(config, "num_key_value_heads", None) == getattr(before, "num_key_value_heads", None)
    indices = [getattr(module, "layer_idx", None) for module in student.modules()]
    assert {index for index in indices if index is not None} == {0, 1}


@pytest.mark.parametrize("architecture", ["gemma3_text", "smollm3"])
def test_the_lists_matter(architecture: str) -> None:
    """Both kinds of layer are kept, so that a list cut wrongly would change the outputs."""
    loaded = pico_decoder(architecture)
    name = "layer_types" if architecture == "gemma3_text" else "no_rope_layers"
    assert len(set(getattr(cut_layers(loaded.model, [0, 3]).config, name))) == 2
    ids = torch.randint(4, 290, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = cut_layers(loaded.model, [0, 3])(input_ids=ids).logits
        with without(loaded.model, [0, 3], {}, ""):
            expected = loaded.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected)


def test_a_student_generates_as_the_teacher_does_without_those_layers(tmp_path: Path, data: Artifact) -> None:
    """With a cache: layers of the student count from 0, so its cache has no holes."""
    before, after, _ = prune_decoder("gemma3_text", True, data, tmp_path, keep_layers=[0, 3])
    inputs = before.tokenizer("The old man and", return_tensors="pt")
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    found = after.model.generate(**inputs, **options)[0].tolist()
    ids = inputs["input_ids"]
    with torch.no_grad(), without(before.model, [0, 3], {}, ""):
        for _ in range(30):
            logits = before.model(input_ids=ids, use_cache=False).logits[:, -1]
            logits[:, [0, 299]] = -torch.inf
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert found == ids[0].tolist()


def test_special_tokens_the_template_and_all_that_generation_names_stay(tmp_path: Path, data: Artifact) -> None:
    before, after, report = prune_decoder("llama", True, data, tmp_path, min_count=10**6)
    assert report.vocabulary_after < report.vocabulary_before
    named = before.tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 299])
    new = after.tokenizer.convert_tokens_to_ids(named)
    assert after.tokenizer.convert_ids_to_tokens(new) == named
    config, generation = after.model.config, after.model.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (new[0], new[2], new[3])
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (new[0], new[2], new[3])
    assert generation.suppress_tokens == [new[0], new[4]]
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]
    rendered = [
        loaded.tokenizer.convert_ids_to_tokens(
            loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        )
        for loaded in (before, after)
    ]
    assert rendered[0] == rendered[1]
    kept = set(after.tokenizer.get_vocab())
    assert set(before.tokenizer.convert_ids_to_tokens(sorted(template_token_ids(before.tokenizer)))) <= kept


def test_the_vocabulary_is_counted_in_conversations_as_the_template_writes_them(tmp_path: Path) -> None:
    turns = [Message("user", "The old man"), Message("assistant", "and the sea went on")]
    chats = publish_documents(tmp_path / "chats", [Conversation(tuple(turns))] * 3, "chat")
    before, after, report = prune_decoder("llama", True, chats, tmp_path, min_count=3, splits_counted=["train"])
    assert report.coverage == {"train": 1.0}
    for text in ("The old man", "and the sea went on"):
        assert after.tokenizer.tokenize(text) == before.tokenizer.tokenize(text)


def hidden_states(model: Any, ids: Tensor) -> Tensor:
    """What each layer is given, and what the last gives out: (layers + 1, 1, T, hidden_size)."""
    seen: list[Tensor] = []

    def give(module: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    layers = layers_of(model)
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in layers]
    handles.append(layers[-1].register_forward_hook(give))
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6), st.data())
def test_byte_level_tokenizers_are_trimmed_soundly_and_every_text_still_reads_the_same(
    texts: list[str], data: st.DataObject
) -> None:
    tokenizer = pico_byte_tokenizer()
    chosen = draw_ids(data, tokenizer)
    texts = [*texts, TRAINING_TEXT, *NASTY_TEXTS]
    assert_trimmed_soundly(tokenizer, chosen, texts)
    vocabulary = read_vocabulary(tokenizer)
    trimmed = trim_tokenizer(tokenizer, vocabulary, sorted(vocabulary.with_parts({*vocabulary.required, *chosen})))
    for text in texts:
        assert trimmed.decode(trimmed.encode(text), clean_up_tokenization_spaces=False) == text


def influence_by_hand(model: Any, batches: list[Tensor]) -> list[float]:
    """Block influence from the hidden states that transformers gives out, one text at a time."""
    cosines = torch.zeros(4, dtype=torch.float64)
    tokens = 0
    for ids in batches:
        states = hidden_states(model, ids).double()
        cosines += torch.nn.functional.cosine_similarity(states[:-1], states[1:], dim=-1).sum(dim=(1, 2))
        tokens += ids.shape[1]
    return (1 - cosines / tokens).tolist()


@pytest.mark.parametrize("architecture", DECODERS)
def test_block_influence_is_that_of_each_text_alone(architecture: str) -> None:
    loaded = pico_decoder(architecture)
    ids = [torch.tensor([loaded.tokenizer.encode(text)]) for text in TEXTS[:3]]
    longest = max(row.shape[1] for row in ids)
    padded = torch.full((3, longest), 3)
    mask = torch.zeros(3, longest, dtype=torch.int64)
    for place, row in enumerate(ids):
        padded[place, : row.shape[1]], mask[place, : row.shape[1]] = row[0], 1
    found = measure_importance(loaded.model, [(padded, mask)])
    assert found.block_influence == pytest.approx(influence_by_hand(loaded.model, ids), abs=1e-6)


def test_layers_are_chosen_by_influence_on_documents(tmp_path: Path, data: Artifact) -> None:
    _, after, report = prune_decoder("smollm3", True, data, tmp_path, layers=2, choose="influence")
    assert report.block_influence is not None
    ranked = sorted(range(4), key=lambda layer: -report.block_influence[layer])
    assert report.layers_kept == sorted(ranked[:2])
    assert len(find_layers(after.model).layers) == 2


def test_learned_positions_are_cut(tmp_path: Path, data: Artifact) -> None:
    for architecture in ("gpt2", "opt"):
        loaded = pico_decoder(architecture)
        task = loaded.task.model_copy(update={"max_length": 40})
        model = publish_model(LoadedModel(loaded.model, loaded.tokenizer, task), tmp_path / architecture)
        out = prune(
            StageInputs(model=model), PruneConfig(max_positions=48), StageContext(tmp_path / f"{architecture}-48")
        )
        student = load_model(out).model
        ids = torch.randint(4, 290, (1, 48), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(student(input_ids=ids).logits, loaded.model(input_ids=ids).logits)
        assert student.config.max_position_embeddings == 48


def test_feed_forwards_of_a_gpt2_that_leaves_its_width_open_are_cut(tmp_path: Path, data: Artifact) -> None:
    loaded = pico_decoder("gpt2", n_inner=None)
    model = publish_model(loaded, tmp_path / "model")
    out = prune(StageInputs(model=model, data=data), PruneConfig(intermediate_size=100), StageContext(tmp_path / "out"))
    assert load_model(out).model.config.n_inner == 100
    assert load_model(out).model.transformer.h[0].mlp.c_fc.weight.shape == (32, 100)


def test_rows_of_a_padded_vocabulary_go() -> None:
    """Many models have more rows than their tokenizer has tokens."""
    loaded = pico_decoder("llama", vocab_size=320)
    kept = [*range(0, 300, 2)]
    kept = sorted({*kept, 0, 1, 2, 3})
    student = cut_embeddings(loaded.model, kept)
    ids = torch.arange(1, len(kept) - 1)[None]
    with torch.no_grad():
        expected = loaded.model(input_ids=torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(student(input_ids=ids).logits, expected)
    assert student.config.vocab_size == len(kept)


def test_lists_of_sequences_of_tokens_are_renumbered_or_go() -> None:
    model = pico_decoder("llama").model
    model.generation_config.bad_words_ids = [[10, 12], [11], [14]]
    student = cut_embeddings(model, [0, 2, 3, 10, 12, 14])
    assert student.generation_config.bad_words_ids == [[3, 4], [5]]
    assert json.loads(student.generation_config.to_json_string())["eos_token_id"] == 1
