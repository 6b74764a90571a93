"""Layers of a language model imitate its teacher's: against float64, however text is packed and a step is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import edgekit.distillation.matching as matching_module
from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.data.packing import IGNORED, PADDING, PackedBatch
from edgekit.data.prepared import PreparedData
from edgekit.data.separation import find_separation
from edgekit.data.token_store import TokenSettings, open_tokens
from edgekit.distillation.config import DistillConfig, LayerPair, OnPolicyConfig
from edgekit.distillation.language_lesson import LanguageLearner
from edgekit.distillation.language_teacher import LanguageBatch, LanguageTeacher, batch_of
from edgekit.distillation.matching import Matcher, Matching, matching_of
from edgekit.distillation.on_policy import pack_written
from edgekit.distillation.stage import distill
from edgekit.distillation.vocabulary_losses import VocabularyObjective
from edgekit.distillation.writing import WrittenSequence
from edgekit.errors import UnsupportedError, UsageError
from edgekit.models.source import load_model
from tests.distillation.test_decoder_losses import reference_row
from tests.distillation.test_language import permuted_teacher
from tests.distillation.test_trainer import kill_after
from tests.distillation.training import LANGUAGE_DISTILL, LANGUAGE_MATCH, Recorder, assert_same_weights, weights
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

HIDDEN, RELATION = 0.5, 0.25
PAIRS = ((0, 1), (1, 3))
MATCHING = Matching(HIDDEN, RELATION, PAIRS, (1, 3), relation_heads=4)
MATCH = LANGUAGE_DISTILL.model_copy(
    update={"alpha": 0.6, "hidden_state_weight": HIDDEN, "attention_relation_weight": RELATION, "epochs": 0.5}
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def language_data(place: Path) -> Artifact:
    return pico_language_data(place, documents=60, seed=11, most_words=12)


@pytest.fixture(scope="module")
def speaker(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=7), place / "matched-speaker")


@pytest.fixture(scope="module")
def learner(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=8, layers=2), place / "matched-learner")


@pytest.fixture(scope="module")
def narrow(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=8, layers=2, hidden_size=16), place / "matched-narrow")


def run(
    student: Artifact, teacher: Artifact, data: Artifact, out: Path, config: DistillConfig
) -> tuple[Artifact, list[float]]:
    recorder = Recorder()
    inputs = StageInputs(model=student, teacher=teacher, data=data)
    made = distill(inputs, config, StageContext(out, seed=3, events=recorder))
    return made, [event.values["loss"] for event in recorder.of("progress") if "loss" in event.values]


def llama_parts(model: PreTrainedModel, layer: int, states: Tensor) -> list[Tensor]:
    block = model.model.layers[layer]
    inputs, attention = block.input_layernorm(states), block.self_attn
    return [attention.q_proj(inputs), attention.k_proj(inputs), attention.v_proj(inputs)]


def phi3_parts(model: PreTrainedModel, layer: int, states: Tensor) -> list[Tensor]:
    block = model.model.layers[layer]
    fused = block.self_attn.qkv_proj(block.input_layernorm(states))
    return [fused[..., :32], fused[..., 32:48], fused[..., 48:]]


def gpt2_parts(model: PreTrainedModel, layer: int, states: Tensor) -> list[Tensor]:
    block = model.transformer.h[layer]
    fused = block.attn.c_attn(block.ln_1(states))
    return [fused[..., :32], fused[..., 32:64], fused[..., 64:]]


def opt_parts(model: PreTrainedModel, layer: int, states: Tensor) -> list[Tensor]:
    block = model.model.decoder.layers[layer]
    inputs, attention = block.self_attn_layer_norm(states), block.self_attn
    return [attention.q_proj(inputs), attention.k_proj(inputs), attention.v_proj(inputs)]


Parts = Callable[[PreTrainedModel, int, Tensor], list[Tensor]]
PARTS: dict[str, Parts] = {"llama": llama_parts, "phi3": phi3_parts, "gpt2": gpt2_parts, "opt": opt_parts}


def reference(student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, parts: Parts) -> tuple[float, float]:
    """Sums of both losses over one document alone, in the models' float64: relations row by row, with numpy."""
    with torch.no_grad():
        own, aim = (each(ids[None], output_hidden_states=True).hidden_states for each in (student, teacher))
        hidden = sum(float((own[a + 1] - aim[b + 1]).square().mean(-1).sum()) for a, b in PAIRS)
        vectors = zip(parts(student, 1, own[1]), parts(teacher, 3, aim[3]), strict=True)
        relation = 0.0
        for mine, other in vectors:
            for last in range(1, len(ids) + 1):
                q, p = (reference_row(each[0, :last].numpy(), 4) for each in (mine, other))
                relation += float((p * np.log(p / q)).sum()) / 4
    return hidden, relation


def packed(lengths: list[list[int]], width: int, seed: int = 0) -> LanguageBatch:
    """Random documents of these lengths side by side, a sequence for each list, half of each document not learned."""
    generator = np.random.default_rng(seed)
    shape = (len(lengths), width)
    input_ids, labels = np.full(shape, 3), np.full(shape, IGNORED)
    positions, documents = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING)
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes):
            place = (row, slice(start, start + size))
            input_ids[place], documents[place] = generator.integers(4, 290, size), number
            positions[place] = np.arange(size)
            labels[row, start + size // 2 : start + size] = input_ids[row, start + size // 2 : start + size]
            start += size
        positions[row, start:] = np.arange(width - start)
    return batch_of(PackedBatch(input_ids, labels, positions, documents), [*range(len(lengths))], CPU)


def documents_of(batch: LanguageBatch) -> list[Tensor]:
    return [
        ids[documents == number]
        for ids, documents in zip(batch.input_ids, batch.document_ids, strict=True)
        for number in range(int(documents.max()) + 1)
    ]


def sums_of(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: LanguageBatch, *, precision: str = "float32"
) -> tuple[dict[str, Tensor], LanguageLearner]:
    matcher = Matcher(MATCHING, 32, 32)
    learner = LanguageLearner(
        student, VocabularyObjective(), student.config.vocab_size, precision=precision, matcher=matcher
    )
    ids = torch.arange(student.config.vocab_size)
    beside = LanguageTeacher(teacher, ids, find_separation(teacher), MATCHING.teacher_view)
    with torch.no_grad():
        shown = beside.look(batch, precision)
    return learner(batch, shown), learner


@pytest.mark.parametrize("architecture", PARTS)
def test_packed_documents_have_the_losses_of_each_alone(architecture: str) -> None:
    """Grouped queries (llama, phi3), fused projections (phi3, gpt2), kept apart by a mask (opt)."""
    student, teacher = (pico_decoder(architecture, layers=n, seed=n).model for n in (2, 4))
    batch = packed([[9, 17], [20], [1, 2, 24]], 32)
    found, _ = sums_of(student, teacher, batch)
    student, teacher = student.double(), teacher.double()
    expected = np.sum([reference(student, teacher, ids, PARTS[architecture]) for ids in documents_of(batch)], axis=0)
    assert found["hidden_states"].item() == pytest.approx(expected[0], rel=1e-4)
    assert found["attention_relations"].item() == pytest.approx(expected[1], rel=1e-4)


def test_relations_in_pieces_have_the_losses_and_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for at_once in (1 << 24, 3 * 32**2, 1):
        monkeypatch.setattr(matching_module, "_RELATIONS_AT_ONCE", at_once)
        student, teacher = (pico_decoder("llama", layers=n, seed=n).model for n in (2, 4))
        sums, learner = sums_of(student, teacher, packed([[9, 17], [20]], 32))
        sums["attention_relations"].backward()
        gradients.append([sums["attention_relations"].detach(), *(p.grad for p in learner.parameters())])
    for other in gradients[1:]:
        for mine, whole in zip(other, gradients[0], strict=True):
            assert (mine is None) == (whole is None)
            if mine is not None:
                torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_step_is_a_mean_over_all_positions_however_it_is_packed_and_cut(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    loaded, teacher = (load_model(each) for each in (learner, speaker))
    store = open_tokens(
        tmp_path / "tokens", PreparedData.open(language_data), "train", loaded.tokenizer, TokenSettings(64)
    )
    student, model = loaded.model.double(), teacher.model.double()
    hidden = relation = soft = hard = positions = learned = 0.0
    for index in range(len(store)):
        piece = store.piece(index)
        ids, rows = torch.from_numpy(piece.ids), torch.from_numpy(piece.learned[1:])
        found = reference(student, model, ids, llama_parts)
        hidden, relation, positions = hidden + found[0], relation + found[1], positions + len(ids)
        with torch.no_grad():
            log_p, log_q = (each(ids[None]).logits[0, :-1].log_softmax(-1)[rows] for each in (model, student))
        soft += float((log_p.exp() * (log_p - log_q)).sum())
        hard -= float(log_q.gather(1, ids[1:][rows][:, None]).sum())
        learned += int(rows.sum())
    expected = (0.6 * soft + 0.4 * hard) / learned + (HIDDEN * hidden / len(PAIRS) + RELATION * relation) / positions
    for name, length, batch_size, steps in (("whole", 64, 64, 1), ("cut", 64, 3, 22), ("wide", 128, 8, 8)):
        language = MATCH.language.model_copy(update={"sequence_length": length})
        changes = {"batch_size": batch_size, "gradient_accumulation_steps": steps, "language": language, "epochs": 1}
        _, losses = run(learner, speaker, language_data, tmp_path / name, MATCH.model_copy(update=changes))
        assert len(losses) == 1, "all text in one step"
        assert losses[0] == pytest.approx(expected, rel=2e-5), name


def test_passes_and_checkpointed_activations_change_no_weight(
    speaker: Artifact, narrow: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    made = []
    for batch_size, steps, checkpointing in ((4, 1, False), (2, 2, False), (1, 4, True)):
        changes = {"batch_size": batch_size, "gradient_accumulation_steps": steps, "dropout": 0.0}
        config = MATCH.model_copy(update={**changes, "gradient_checkpointing": checkpointing})
        made.append(run(narrow, speaker, language_data, tmp_path / f"{batch_size}", config))
    assert made[0][1][-1] < made[0][1][0]
    for other, losses in made[1:]:
        assert losses == pytest.approx(made[0][1], rel=1e-4)
        for name, weight in weights(made[0][0]).items():
            torch.testing.assert_close(weights(other)[name], weight, atol=2e-4, rtol=1e-3)


def test_bf16_products_give_nearly_the_same_losses() -> None:
    student, teacher = (pico_decoder("llama", layers=n, seed=n).model for n in (2, 4))
    batch = packed([[9, 17], [20]], 32)
    expected, _ = sums_of(student, teacher, batch)
    found, learner = sums_of(student, teacher, batch, precision="bf16")
    for name in ("hidden_states", "attention_relations"):
        assert found[name].dtype == torch.float32
        assert found[name].item() != expected[name].item()
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.02)
    sum(found.values()).backward()
    assert all(torch.isfinite(each.grad).all() for each in learner.parameters())


def test_a_teacher_with_more_tokens_in_another_order_shows_the_same_layers(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    permuted = permuted_teacher(speaker, tmp_path / "permuted")
    found = [
        run(learner, teacher, language_data, tmp_path / name, MATCH)[1]
        for name, teacher in (("same", speaker), ("other", permuted))
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_teacher_has_nothing_to_learn_from_itself(speaker: Artifact, language_data: Artifact, tmp_path: Path) -> None:
    config = MATCH.model_copy(update={"alpha": 1.0, "dropout": 0.0})
    assert abs(run(speaker, speaker, language_data, tmp_path / "out", config)[1][0]) < 1e-6


def test_on_the_students_text_prompts_and_answers_are_matched(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    seen: list[list[WrittenSequence]] = []

    def spy(texts: list[WrittenSequence], *rest: object) -> LanguageBatch:
        seen.append(texts)
        return pack_written(texts, *rest)  # type: ignore[arg-type]

    written = OnPolicyConfig(share=1.0, max_new_tokens=12, prompt_tokens=4)
    language = MATCH.language.model_copy(update={"on_policy": written})
    config = MATCH.model_copy(update={"language": language, "epochs": 0.05, "batch_size": 2})
    config = config.model_copy(update={"gradient_accumulation_steps": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.distillation.on_policy.pack_written", spy)
        _, losses = run(learner, speaker, language_data, tmp_path / "out", config)
    student, teacher = (load_model(each).model.double() for each in (learner, speaker))
    hidden = relation = soft = positions = learned = 0.0
    for text in [text for texts in seen[:2] for text in texts]:
        ids, rows = torch.from_numpy(text.token_ids), torch.from_numpy(text.loss_mask[1:])
        found = reference(student, teacher, ids, llama_parts)
        hidden, relation, positions = hidden + found[0], relation + found[1], positions + len(ids)
        with torch.no_grad():
            log_p, log_q = (each(ids[None]).logits[0, :-1].log_softmax(-1)[rows] for each in (teacher, student))
        soft += float((log_p.exp() * (log_p - log_q)).sum())
        learned += int(rows.sum())
    assert positions > learned > 20
    expected = 0.6 * soft / learned + (HIDDEN * hidden / len(PAIRS) + RELATION * relation) / positions
    assert losses[0] == pytest.approx(expected, rel=1e-4)


def test_a_killed_run_with_projections_goes_on_to_the_same_bits(
    speaker: Artifact, narrow: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    inputs = StageInputs(model=narrow, teacher=speaker, data=language_data)
    expected = distill(inputs, LANGUAGE_MATCH, StageContext(tmp_path / "expected", seed=3))
    work = tmp_path / "work"
    kill_after(3, ["distill", narrow.path, language_data.path, work, tmp_path / "out", speaker.path])
    kept = load_file(next((work / "checkpoints").glob("step-*")) / "learner.safetensors")
    assert {name for name in kept if "projections" in name} == {
        f"matcher.projections.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }
    torch.manual_seed(77)
    recorder = Recorder()
    made = distill(inputs, LANGUAGE_MATCH, StageContext(tmp_path / "out", seed=3, events=recorder, work_directory=work))
    assert recorder.of("message")[0].text.startswith("Resumed after step")
    assert_same_weights(made, expected)
    assert weights(made).keys() == weights(narrow).keys(), "projections are no part of the student"
    other = distill(inputs, LANGUAGE_MATCH, StageContext(tmp_path / "other", seed=4))
    assert not torch.equal(*(weights(each)["model.norm.weight"] for each in (expected, other)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layer_map": [LayerPair(student=2, teacher=3)]}, "student layer 2, expected 0 to 1"),
        ({"relation_layers": LayerPair(student=1, teacher=4)}, "teacher layer 4, expected 0 to 3"),
        ({"relation_heads": 5}, r"relation_heads: found 5, .* 32 \(student\) and 32 \(teacher\)"),
    ],
)
def test_layers_and_heads_that_are_not_there_are_named(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path, settings: dict, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        run(learner, speaker, language_data, tmp_path / "out", MATCH.model_copy(update=settings))
    assert not (tmp_path / "out").exists()


def test_queries_decide_the_heads_and_not_the_hidden_size() -> None:
    """A student cut in width keeps its heads, one cut in heads its hidden size."""
    teacher = pico_decoder("qwen3", num_attention_heads=6, hidden_size=48, head_dim=8).model
    thin = pico_decoder("qwen3", layers=2, hidden_size=20, num_attention_heads=6, head_dim=8).model
    few = pico_decoder("qwen3", layers=2, num_attention_heads=4, hidden_size=48, head_dim=8).model
    assert matching_of(MATCH, thin, teacher).relation_heads == 6
    assert matching_of(MATCH, few, teacher).relation_heads == 2


def test_a_last_layer_that_is_projected_is_refused(language_data: Artifact, tmp_path: Path) -> None:
    student, teacher = (
        publish_model(pico_decoder("opt", layers=n, word_embed_proj_dim=16), tmp_path / str(n)) for n in (2, 4)
    )
    config = MATCH.model_copy(update={"attention_relation_weight": 0.0})
    with pytest.raises(UnsupportedError, match=r"'opt': found 16 channels after layer 3, expected 32.*layer_map"):
        run(student, teacher, language_data, tmp_path / "out", config)
    inner = config.model_copy(update={"layer_map": [LayerPair(student=0, teacher=1)]})
    run(student, teacher, language_data, tmp_path / "inner", inner)
