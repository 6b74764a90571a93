"""The losses on decoders: their heads, and the queries, keys and values that relations are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from edgekit.distillation.batches import Batch
from edgekit.distillation.learner import Learner, Objective, observe
from edgekit.distillation.losses import attention_relation_loss, decoder_pairs
from edgekit.distillation.matching import View
from edgekit.distillation.projections import find_projections, watched
from edgekit.distillation.vocabulary_head import check_head, find_head
from edgekit.errors import UnsupportedError
from tests.distillation.test_losses import tensors
from tests.pico_decoders import DECODERS, pico_decoder

IDS = torch.tensor([[9, 40, 77, 120, 8, 33]])
KEPT = {}


def keeping_attention(module, query, key, value, attention_mask, **settings):
    KEPT[module.layer_idx] = (query, key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


AttentionInterface.register("edgekit_test_keeping", keeping_attention)


@pytest.mark.parametrize("architecture", DECODERS)
def test_the_head_gives_the_models_logits(architecture):
    model = pico_decoder(architecture).model
    head = find_head(model)
    check_head(model, head)
    with torch.no_grad():
        hidden = model.base_model(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(head.logits(hidden), model(input_ids=IDS).logits)
    assert head.weight is model.get_output_embeddings().weight


def test_scaled_and_capped_heads_are_read_from_the_configuration():
    assert find_head(pico_decoder("granite").model).scale == pytest.approx(1 / 1.5)
    capped = pico_decoder("gemma3_text", final_logit_softcapping=0.7).model
    head = find_head(capped)
    assert head.softcap == 0.7
    check_head(capped, head)
    capped.config.final_logit_softcapping = None
    with pytest.raises(UnsupportedError, match="It does something else with them"):
        check_head(capped, head)


@pytest.mark.parametrize("architecture", DECODERS)
def test_queries_keys_and_values_are_those_that_attention_gets(architecture):
    model = pico_decoder(architecture).model
    model.set_attn_implementation("edgekit_test_keeping")
    projections = find_projections(model, 2)
    KEPT.clear()
    with torch.no_grad(), watched(projections) as seen:
        model(input_ids=IDS)
    query, key, value = KEPT[2]  # (1, heads, 6, 8), queries and keys after norms and rotation
    groups = 4 if architecture in ("gpt2", "opt") else 2
    assert projections.sizes == (32, 8 * groups, 8 * groups)
    assert {part: found.shape[-1] for part, found in seen.items()} == dict(
        zip(("query", "key", "value"), projections.sizes, strict=True)
    )
    torch.testing.assert_close(seen["value"], value.transpose(1, 2).flatten(2))
    if architecture not in ("qwen3", "gemma3_text", "olmo2"):  # those norm queries and keys
        scale = 8**-0.5 if architecture == "opt" else 1.0  # OPT scales its queries first
        for part, turned, factor in (("query", query, scale), ("key", key, 1.0)):
            # rotation keeps the length of each head's vector
            lengths = seen[part].unflatten(-1, (-1, 8)).norm(dim=-1) * factor
            torch.testing.assert_close(lengths, turned.transpose(1, 2).norm(dim=-1))


def test_fused_projections_that_do_not_add_up_are_refused():
    model = pico_decoder("phi3").model
    model.config.num_key_value_heads = 1
    with pytest.raises(UnsupportedError, match=r"one linear of 64 outputs .*expected 4 \+ 2 x 1 heads of 8"):
        find_projections(model, 2)


@pytest.mark.parametrize("architecture", ["phi3", "gpt2", "llama"])
def test_hidden_states_and_relations_of_a_decoder_teach_its_student(architecture):
    teacher, student = pico_decoder(architecture).model, pico_decoder(architecture, layers=2, seed=1).model
    objective = Objective(
        alpha=1.0, hidden_state_weight=1.0, attention_relation_weight=1.0, layer_map=((0, 1), (1, 3)),
        relation_layers=(1, 3), relation_heads=8 if architecture == "phi3" else 4,
    )  # fmt: skip
    mask = torch.ones_like(IDS)
    batch = Batch([0], IDS, mask, torch.tensor([-100]), comparable=mask.bool())
    with torch.no_grad():
        seen = observe(teacher, objective.teacher_view, IDS, mask, precision="float32")
    learner = Learner(student, objective)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    history = []
    for _ in range(12):
        sums = learner(batch, seen)
        assert set(sums) == {"hidden_states", "attention_relations"}
        history.append({name: value.item() for name, value in sums.items()})
        optimizer.zero_grad()
        sum(sums.values()).backward()
        optimizer.step()
    for name in ("hidden_states", "attention_relations"):
        assert history[-1][name] < 0.8 * history[0][name]
    with torch.no_grad():  # a teacher is at rest with itself
        same = Learner(teacher, Objective(**{**vars(objective), "layer_map": ((1, 1),), "relation_layers": (3, 3)}))
        found = same(batch, observe(teacher, View((1,), 3), IDS, mask, precision="float32"))
    assert all(value.item() == pytest.approx(0, abs=1e-9) for value in found.values())


def test_pairs_of_two_packed_documents_by_hand():
    pairs = decoder_pairs(torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[1, 1, 1, 1, 0]]))
    assert pairs[0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0],
    ]  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_relations_of_packed_documents_are_those_of_each_alone(seed, first, second):
    student, teacher = tensors(seed, (1, first + second + 2, 4), (1, first + second + 2, 8))
    student[:, -2:] = torch.nan  # padding
    documents = torch.tensor([[0] * first + [1] * second + [1, 1]])
    mask = torch.tensor([[1] * (first + second) + [0, 0]])
    pairs = decoder_pairs(documents, mask)
    found = attention_relation_loss(student, teacher, pairs, relation_heads=2, reduction="sum")
    mean = attention_relation_loss(student, teacher, pairs, relation_heads=2)
    assert mean.item() == pytest.approx(found.item() / (first + second))
    expected = 0.0
    for part in (slice(0, first), slice(first, first + second)):
        length = part.stop - part.start
        for last in range(1, length + 1):  # each position sees itself and those before it
            window = slice(part.start, part.start + last)
            rows = [reference_row(tensor[0, window].numpy(), 2) for tensor in (teacher, student)]
            expected += float((rows[0] * np.log(rows[0] / rows[1])).sum()) / 2
    assert found.item() == pytest.approx(expected, abs=1e-10)


def reference_row(vectors, heads):
    """(heads, T): softmax of the last position's products with all, in heads."""
    parts = vectors.reshape(len(vectors), heads, -1)
    scores = np.einsum("hd,thd->ht", parts[-1], parts) / np.sqrt(parts.shape[-1])
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
