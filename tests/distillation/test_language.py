"""Language models learn from text and from a teacher; how a step is cut into passes changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.distillation.config import LanguageConfig
from edgekit.distillation.stage import DistillConfig, FinetuneConfig, distill, finetune
from edgekit.errors import EnvironmentLacksError, ModelError, TrainingError
from edgekit.models.source import load_model
from edgekit.models.vocabulary_map import teacher_token_ids
from tests.distillation.training import Recorder, poisoned_decoder, weights
from tests.pico import pico_tokenizer, publish_model
from tests.pico_decoders import pico_byte_tokenizer, pico_decoder
from tests.pico_language import pico_language_data

LANGUAGE = LanguageConfig(sequence_length=64)
TRAINING = {"epochs": 2, "batch_size": 4, "precision": "float32", "language": LANGUAGE}
DISTILL = DistillConfig(
    epochs=2, batch_size=4, learning_rate=5e-3, alpha=1.0, temperature=1.0, precision="float32", language=LANGUAGE
)


@pytest.fixture(scope="module")
def language_data(place: Path) -> Artifact:
    return pico_language_data(place)


@pytest.fixture(scope="module")
def decoder(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama"), place / "decoder")


def perplexities(recorder: Recorder) -> list[float]:
    return [event.values["perplexity"] for event in recorder.of("metric")]


@pytest.fixture(scope="module")
def trained(place: Path, decoder: Artifact, language_data: Artifact) -> tuple[Artifact, Recorder]:
    recorder = Recorder()
    config = FinetuneConfig(epochs=3, batch_size=4, learning_rate=5e-3, precision="float32", language=LANGUAGE)
    context = StageContext(place / "trained", events=recorder)
    return finetune(StageInputs(model=decoder, data=language_data), config, context), recorder


def test_text_is_learned_and_the_best_weights_are_kept(trained: tuple[Artifact, Recorder]) -> None:
    found = perplexities(trained[1])
    assert min(found) < 0.3 * found[0]
    assert trained[1].of("progress")[-1].values["tokens_per_s"] > 0


def test_a_student_comes_near_its_teacher(
    trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path
) -> None:
    student = publish_model(pico_decoder("llama", seed=5, layers=2), tmp_path / "student")
    recorder = Recorder()
    inputs = StageInputs(model=student, teacher=trained[0], data=language_data)
    distill(inputs, DISTILL.model_copy(update={"epochs": 4.0}), StageContext(tmp_path / "out", events=recorder))
    losses = [event.values["loss"] for event in recorder.of("progress") if "loss" in event.values]
    assert losses[-1] < 0.25 * losses[0]


def test_the_teacher_itself_has_nothing_to_learn(
    trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path
) -> None:
    recorder = Recorder()
    inputs = StageInputs(model=trained[0], teacher=trained[0], data=language_data)
    distill(inputs, DISTILL, StageContext(tmp_path / "out", events=recorder))
    losses = [event.values["loss"] for event in recorder.of("progress") if "loss" in event.values]
    assert abs(losses[0]) < 1e-6


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_gradient_accumulation_changes_nothing(
    decoder: Artifact, trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path, alpha: float
) -> None:
    inputs = StageInputs(model=decoder, teacher=trained[0], data=language_data)
    made = []
    for batch_size, steps in ((4, 1), (2, 2), (1, 4)):
        config = DISTILL.model_copy(
            update={"batch_size": batch_size, "gradient_accumulation_steps": steps, "alpha": alpha, "epochs": 0.5}
        )
        made.append(weights(distill(inputs, config, StageContext(tmp_path / f"{batch_size}"))))
    for other in made[1:]:
        for name, weight in made[0].items():
            torch.testing.assert_close(other[name], weight, atol=2e-4, rtol=1e-3)


def test_chunks_and_checkpointed_activations_change_nothing(
    decoder: Artifact, trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path
) -> None:
    inputs = StageInputs(model=decoder, teacher=trained[0], data=language_data)
    found = []
    for number, (chunk, checkpointing) in enumerate([(256, False), (7, False), (256, True)]):
        recorder = Recorder()
        language = LANGUAGE.model_copy(update={"chunk_tokens": chunk})
        config = DISTILL.model_copy(
            update={"language": language, "gradient_checkpointing": checkpointing, "epochs": 0.5}
        )
        distill(inputs, config, StageContext(tmp_path / str(number), events=recorder))
        found.append([event.values["loss"] for event in recorder.of("progress") if "loss" in event.values])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it does itself
@pytest.mark.slow
def test_compiled_layers_and_losses_change_nothing_but_rounding(
    decoder: Artifact, trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path
) -> None:
    inputs = StageInputs(model=decoder, teacher=trained[0], data=language_data)
    found, made = [], []
    for compiled in (False, True):
        recorder = Recorder()
        language = LANGUAGE.model_copy(update={"compile": compiled, "chunk_tokens": 50})
        config = DISTILL.model_copy(update={"language": language, "alpha": 0.6, "epochs": 0.5})
        made.append(weights(distill(inputs, config, StageContext(tmp_path / str(compiled), events=recorder))))
        found.append([event.values["loss"] for event in recorder.of("progress") if "loss" in event.values])
        found[-1] += [event.values["perplexity"] for event in recorder.of("metric")]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    for name, weight in made[0].items():
        torch.testing.assert_close(made[1][name], weight, atol=2e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it does itself
def test_without_a_compiler_compiling_is_refused_before_the_first_step(
    decoder: Artifact, trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path, monkeypatch: Any
) -> None:
    import torch._inductor.cpp_builder as builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing(*_: object, **__: object) -> str:
        raise InvalidCxxCompiler

    torch._dynamo.reset()
    monkeypatch.setattr(builder, "get_cpp_compiler", missing)
    inputs = StageInputs(model=decoder, teacher=trained[0], data=language_data)
    config = DISTILL.model_copy(update={"language": LANGUAGE.model_copy(update={"compile": True})})
    with pytest.raises(EnvironmentLacksError, match=r"language.compile: .*compiler.*Install a C\+\+ compiler"):
        distill(inputs, config, StageContext(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_teacher_with_more_tokens_in_another_order_says_the_same(
    trained: tuple[Artifact, Recorder], language_data: Artifact, tmp_path: Path
) -> None:
    permuted = permuted_teacher(trained[0], tmp_path / "permuted")
    losses = []
    for name, teacher in (("same", trained[0]), ("permuted", permuted)):
        recorder = Recorder()
        student = publish_model(pico_decoder("llama", seed=5, layers=2), tmp_path / f"student-{name}")
        inputs = StageInputs(model=student, teacher=teacher, data=language_data)
        config = DISTILL.model_copy(update={"epochs": 0.5})
        distill(inputs, config, StageContext(tmp_path / f"out-{name}", events=recorder))
        losses.append([event.values["loss"] for event in recorder.of("progress") if "loss" in event.values])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_teacher_with_other_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tokens that the teacher does not have, first .*choose a teacher with"):
        teacher_token_ids(pico_byte_tokenizer(), pico_tokenizer("roberta"))


def test_a_batch_that_loses_its_numbers_is_named_and_the_weights_before_it_are_kept(
    trained: tuple[Artifact, Recorder], place: Path, tmp_path: Path
) -> None:
    broken, data = poisoned_decoder(tmp_path / "broken"), pico_language_data(tmp_path, seed=1)
    inputs = StageInputs(model=broken, teacher=trained[0], data=data)
    work = tmp_path / "work"
    for config, stage in ((DISTILL, "distill"), (FinetuneConfig(**TRAINING), "finetune")):
        given = inputs if stage == "distill" else StageInputs(model=broken, data=data)
        context = StageContext(tmp_path / "out", work_directory=work / stage)
        message = (
            rf"{stage}: step \d+ of \d+: the loss is nan, .*batch: sequence \d+.*good checkpoint is {work / stage}"
        )
        with pytest.raises(TrainingError, match=message):
            (distill if stage == "distill" else finetune)(given, config, context)
        kept = load_file(next((work / stage / "checkpoints").glob("step-*")) / "learner.safetensors")
        finite = {name: bool(torch.isfinite(value).all()) for name, value in kept.items() if "embed" not in name}
        assert all(finite.values())


def permuted_teacher(model: Artifact, out: Path) -> Artifact:
    """Publishes the same model with its ordinary tokens in reverse order, and 5 rows of no token behind them."""
    import json

    from tokenizers import Tokenizer

    loaded = load_model(model)
    size = len(loaded.tokenizer)
    order = [*range(4), *range(size - 1, 3, -1)]  # new id to old id; the four special tokens stay
    content = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    new_id = {old: new for new, old in enumerate(order)}
    content["model"]["vocab"] = {token: new_id[index] for token, index in content["model"]["vocab"].items()}
    loaded.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    table = loaded.model.get_input_embeddings().weight.data
    loaded.model.resize_token_embeddings(size + 5)
    grown = loaded.model.get_input_embeddings().weight.data
    grown[:size] = table[order]
    grown[size:] = 3.0
    return publish_model(loaded, out)
