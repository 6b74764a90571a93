"""The stages as a user meets them: artifacts in, an artifact out, and bad input refused by name."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.artifact import Lineage, publish
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import DataDescription, PreparedData, Split, write_description, write_split
from edgekit.data.stage import PrepareConfig, prepare
from edgekit.distillation.stage import (
    CaptureConfig,
    DistillConfig,
    FinetuneConfig,
    LayerPair,
    capture,
    distill,
    finetune,
)
from edgekit.errors import ArtifactError, DataError, ModelError, UnsupportedError, UsageError
from edgekit.models.source import load_model
from edgekit.pruning.stage import PruneConfig, prune
from edgekit.stages import run_stage
from tests.distillation.test_trainer import ROOT, kill_after
from tests.distillation.training import DISTILL, Recorder, assert_same_weights, weights
from tests.pico import pico_data_artifact, pico_loaded, pico_model_artifact, pico_texts, publish_model

QUICK = {"epochs": 0.2, "batch_size": 8}


def _logits(loaded, text):
    """Returns (labels) of one text alone."""
    with torch.no_grad():
        return loaded.model(**loaded.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")).logits[0]


def data_of(directory, splits, labels=("negative", "positive")):
    from edgekit.artifact import Artifact

    with publish(directory, kind="data", lineage=Lineage(stage="source")) as staging:
        for split in splits:
            write_split(staging, split)
        sizes = {split.name: len(split) for split in splits}
        write_description(staging, DataDescription(labels=list(labels), splits=sizes))
    return Artifact.open(directory)


def context(tmp_path, **settings):
    return StageContext(tmp_path / "out", **{"events": Recorder(), **settings})


def test_finetuning_makes_a_model_that_knows_where_it_comes_from(teacher, data, tmp_path):
    config = FinetuneConfig(**QUICK)
    made = finetune(StageInputs(model=teacher, data=data), config, context(tmp_path, seed=5))
    assert made.kind == "model"
    assert made.lineage.stage == "finetune"
    assert made.lineage.seed == 5
    assert made.lineage.config == config.model_dump(mode="json")
    assert made.lineage.inputs["model"].digest == teacher.digest
    loaded = load_model(made)
    assert loaded.task.labels == ["negative", "positive"]
    assert not loaded.model.training
    # the dropout used in training is not saved
    before, after = (json.loads((each.path / "config.json").read_text()) for each in (teacher, made))
    assert before == after


@pytest.fixture(scope="module")
def good_teacher(place, teacher, data):
    config = FinetuneConfig(epochs=15, batch_size=8, learning_rate=3e-3, evaluations_per_epoch=1, dropout=0.0)
    return finetune(StageInputs(model=teacher, data=data), config, StageContext(place / "good-teacher"))


def test_a_student_learns_its_teachers_answers_from_text_without_labels(good_teacher, student, tmp_path):
    data = pico_data_artifact(tmp_path, rows=40, unlabelled=400, seed=8)
    config = DistillConfig(epochs=8, batch_size=16, learning_rate=3e-3, alpha=1.0, dropout=0.0, evaluations_per_epoch=1)
    made = distill(StageInputs(model=student, teacher=good_teacher, data=data), config, context(tmp_path))
    texts = PreparedData.open(pico_data_artifact(tmp_path, rows=400, seed=77, name="fresh")).split("train").texts

    def answers(artifact):
        loaded = load_model(artifact)
        inputs = loaded.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            return loaded.model(**inputs).logits.argmax(dim=-1).numpy()

    agreement = np.mean(answers(made) == answers(good_teacher))
    assert agreement > np.mean(answers(student) == answers(good_teacher)) + 0.2
    assert agreement > 0.75


def test_a_signal_artifact_and_capturing_inside_give_the_same_student(teacher, student, data, tmp_path):
    signal = capture(StageInputs(teacher=teacher, data=data), CaptureConfig(), StageContext(tmp_path / "signal"))
    inputs = StageInputs(model=student, teacher=teacher, data=data)
    config = DistillConfig(**QUICK)
    inside = distill(inputs, config, StageContext(tmp_path / "inside"))
    given = distill(
        StageInputs(model=student, teacher=teacher, data=data, signal=signal), config, StageContext(tmp_path / "given")
    )
    assert_same_weights(inside, given)
    assert given.lineage.inputs.keys() == {"model", "teacher", "data", "signal"}


def test_matching_hidden_states_brings_them_nearer(teacher, data, tmp_path):
    student = pico_model_artifact(tmp_path, layers=2, seed=3)
    texts = PreparedData.open(data).split("test").texts[:16]

    def distance(artifact):
        own, aim = load_model(artifact), load_model(teacher)
        inputs = own.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = [each.model(**inputs, output_hidden_states=True).hidden_states for each in (own, aim)]
        mask = inputs["attention_mask"].bool()
        return (states[0][-1][mask] - states[1][-1][mask]).square().mean().item()

    config = DistillConfig(epochs=4, batch_size=8, learning_rate=3e-3, hidden_state_weight=10.0, dropout=0.0)
    made = distill(StageInputs(model=student, teacher=teacher, data=data), config, context(tmp_path))
    assert distance(made) < 0.8 * distance(student)


@pytest.mark.parametrize("best_by", ["divergence", "cross_entropy", "accuracy"])
def test_the_student_kept_is_the_best_by_the_measure_asked_for(good_teacher, student, data, tmp_path, best_by):
    recorder, own = Recorder(), load_model(good_teacher)
    config = DistillConfig(
        epochs=6,
        batch_size=8,
        learning_rate=6e-3,
        schedule="constant",
        precision="float32",
        evaluations_per_epoch=3,
        best_by=best_by,
    )
    inputs = StageInputs(model=student, teacher=good_teacher, data=data)
    made = load_model(distill(inputs, config, StageContext(tmp_path / "out", seed=3, events=recorder)))
    found = [event.values for event in recorder.of("metric")]
    best = (max if best_by == "accuracy" else min)(values[best_by] for values in found)
    split = PreparedData.open(data).split("validation")
    log_p, log_q = (
        torch.stack([_logits(each, text).double().log_softmax(-1) for text in split.texts]) for each in (own, made)
    )
    right = log_q.argmax(-1) == torch.tensor(split.labels)
    again = {
        "divergence": (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        "cross_entropy": -log_q.gather(1, torch.tensor(split.labels)[:, None]).mean(),
        "accuracy": right.double().mean(),
    }
    assert len({values[best_by] for values in found}) > 1
    assert float(again[best_by]) == pytest.approx(best, rel=1e-4)


def test_a_killed_distillation_with_every_loss_resumes_to_the_same_bits(teacher, data, tmp_path):
    loaded = pico_loaded(layers=2, seed=1)
    student = publish_model(loaded, tmp_path / "student")
    inputs = StageInputs(model=student, teacher=teacher, data=data)
    expected = distill(inputs, DISTILL, StageContext(tmp_path / "expected", seed=3))
    work = tmp_path / "work"
    kill_after(6, ["distill", student.path, data.path, work, tmp_path / "out", teacher.path])
    made = distill(inputs, DISTILL, StageContext(tmp_path / "out", seed=3, work_directory=work))
    assert_same_weights(made, expected)


def test_a_student_of_another_width_is_saved_without_the_projections(teacher, data, tmp_path):
    wide = pico_loaded(layers=2, seed=1)
    config = wide.model.config
    config.hidden_size, config.intermediate_size = 16, 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide.model = type(wide.model)(config).eval()
    student = publish_model(wide, tmp_path / "narrow")
    settings = DistillConfig(**QUICK, hidden_state_weight=1.0, attention_relation_weight=1.0)
    made = distill(StageInputs(model=student, teacher=teacher, data=data), settings, context(tmp_path))
    assert weights(made).keys() == weights(student).keys()


def test_matching_works_across_architectures_and_refuses_what_cannot_be_compared(teacher, data, tmp_path):
    other = pico_model_artifact(tmp_path, architecture="distilbert", layers=2)
    settings = DistillConfig(**QUICK, hidden_state_weight=1.0, attention_relation_weight=1.0)
    distill(StageInputs(model=other, teacher=teacher, data=data), settings, StageContext(tmp_path / "one"))
    shared = pico_model_artifact(tmp_path, architecture="albert", layers=2)
    with pytest.raises(UnsupportedError, match=r"albert.*attention_relation_weight to 0"):
        distill(StageInputs(model=shared, teacher=teacher, data=data), settings, StageContext(tmp_path / "two"))
    plain = DistillConfig(**QUICK)
    distill(StageInputs(model=shared, teacher=teacher, data=data), plain, StageContext(tmp_path / "three"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"layer_map": [LayerPair(student=2, teacher=3)], "hidden_state_weight": 1.0},
            "student layer 2, expected 0 to 1",
        ),
        ({"relation_layers": LayerPair(student=1, teacher=4)}, "teacher layer 4, expected 0 to 3"),
        ({"relation_heads": 5}, "relation_heads: found 5"),
    ],
)
def test_layers_and_heads_that_are_not_there_are_named(teacher, student, data, tmp_path, settings, expected):
    config = DistillConfig(**QUICK, **{"attention_relation_weight": 1.0, **settings})
    with pytest.raises(UsageError, match=expected):
        distill(StageInputs(model=student, teacher=teacher, data=data), config, context(tmp_path))


def test_labels_that_differ_are_both_named(teacher, data, tmp_path):
    student = pico_model_artifact(tmp_path, labels=("positive", "negative"), layers=2)
    with pytest.raises(ModelError, match=r"\['positive', 'negative'\] in the student and \['negative', 'positive'\]"):
        distill(StageInputs(model=student, teacher=teacher, data=data), DISTILL, context(tmp_path))
    with pytest.raises(DataError, match=r"\['negative', 'positive'\] in the data.*\['positive', 'negative'\]"):
        finetune(StageInputs(model=student, data=data), FinetuneConfig(), context(tmp_path))
    with pytest.raises(DataError, match="expected those of the teacher"):
        capture(StageInputs(teacher=student, data=data), CaptureConfig(), context(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_head_that_was_never_trained_teaches_nothing_until_it_is_finetuned(student, data, tmp_path):
    loaded = replace(pico_loaded(layers=2, seed=3), head_trained=False)
    untrained = publish_model(loaded, tmp_path / "untrained")
    message = f"{untrained.path}: found a teacher whose .* never trained, expected .* Finetune it first"
    with pytest.raises(ModelError, match=f"capture: {message}"):
        capture(StageInputs(teacher=untrained, data=data), CaptureConfig(), context(tmp_path))
    with pytest.raises(ModelError, match=f"distill: {message}"):
        distill(StageInputs(model=student, teacher=untrained, data=data), DISTILL, context(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["untrained"]
    cut = prune(StageInputs(model=untrained), PruneConfig(layers=1), StageContext(tmp_path / "cut"))
    assert not load_model(cut).head_trained
    trained = finetune(StageInputs(model=cut, data=data), FinetuneConfig(**QUICK), StageContext(tmp_path / "trained"))
    config = DistillConfig(**QUICK)
    made = distill(StageInputs(model=untrained, teacher=trained, data=data), config, context(tmp_path))
    assert load_model(trained).head_trained
    assert load_model(made).head_trained


def test_one_class_only_is_refused(teacher, tmp_path):
    rows = ["good film", "fine story"]
    data = data_of(tmp_path / "data", [Split("train", rows, [1, 1]), Split("validation", rows, [0, 1])])
    with pytest.raises(DataError, match="found only the label 'positive' in the split 'train'"):
        finetune(StageInputs(model=teacher, data=data), FinetuneConfig(), context(tmp_path))
    with pytest.raises(DataError, match="found only the label 'positive'"):
        distill(StageInputs(model=teacher, teacher=teacher, data=data), DistillConfig(), context(tmp_path))


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (Split("train", ["good", "bad"], [1, 2]), Split("validation", ["good"], [1]), "train row 1: found the label 2"),
        (Split("train", ["good", "bad"], [1, 0]), Split("validation", [], []), "'validation' is empty"),
        (Split("train", ["good", "bad"], None), Split("validation", ["good"], [1]), "'train' has no column 'label'"),
        (
            Split("train", ["good", ""], [1, 0]),
            Split("validation", ["good"], [1]),
            r"train.parquet, row 1: .*without any",
        ),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(teacher, tmp_path, train, validation, expected):
    data = data_of(tmp_path / "data", [train, validation])
    with pytest.raises(DataError, match=expected):
        finetune(StageInputs(model=teacher, data=data), FinetuneConfig(), context(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["finetune", "capture"])
def test_a_text_without_tokens_is_named_by_the_line_of_the_file_that_was_prepared(teacher, tmp_path, kind):
    texts, labels = pico_texts(60)
    rows = [f'"{text}",{"np"[label]}' for text, label in zip(texts, labels, strict=True)]
    rows.insert(41, "\u200b,p")
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    config = PrepareConfig(
        source=str(tmp_path / "reviews.csv"),
        labels=["negative", "positive"],
        label_map={"n": "negative", "p": "positive"},
    )
    data = prepare(StageInputs(), config, StageContext(tmp_path / "data", seed=0))
    assert "\u200b" in PreparedData.open(data).split("train").texts, "another seed is needed"
    inputs = StageInputs(model=teacher, teacher=teacher, data=data)
    config = FinetuneConfig() if kind == "finetune" else CaptureConfig()
    with pytest.raises(DataError, match=r"train\.parquet, row \d+ \(reviews\.csv, line 43\): found a text without any"):
        run_stage(kind, inputs, config, context(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_refused(teacher, data, tmp_path):
    from edgekit.models.quantized import Scheme, install
    from edgekit.models.source import save_model

    loaded = load_model(teacher)
    install(loaded.model, {"classifier": Scheme()})
    with publish(tmp_path / "quantized", kind="model", lineage=Lineage(stage="source")) as staging:
        save_model(loaded, staging)
        if not (staging / "quantization.json").is_file():
            from edgekit.models.quantized import schemes_of, write_quantization

            write_quantization(staging, schemes_of(loaded.model))
    from edgekit.artifact import Artifact

    quantized = Artifact.open(tmp_path / "quantized")
    with pytest.raises(UnsupportedError, match=r"finetune.*quantized model.*before 'quantize'"):
        finetune(StageInputs(model=quantized, data=data), FinetuneConfig(), context(tmp_path))


def test_an_output_that_exists_is_refused_before_any_work(teacher, data, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="already exists"):
        finetune(StageInputs(model=teacher, data=data), FinetuneConfig(epochs=1000), context(tmp_path))


@pytest.mark.slow
def test_two_processes_do_the_maths_of_one(teacher, student, data, tmp_path):
    def run(name, launcher):
        arguments = ["share", student.path, data.path, tmp_path / f"work-{name}", tmp_path / name, teacher.path]
        command = [sys.executable, *launcher, "-m", "tests.distillation.training", *map(str, arguments)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    alone = run("alone", [])
    shared = run("shared", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    assert len(alone) == 9 + 3
    np.testing.assert_allclose(np.concatenate(shared), np.concatenate(alone), rtol=1e-4)


def test_configs_import_without_torch():
    code = (
        "import sys, edgekit.distillation.stage; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_setting_is_documented_and_bad_values_are_refused():
    for config in (FinetuneConfig, DistillConfig, CaptureConfig, LayerPair):
        assert all(field.description for field in config.model_fields.values())
    for bad in ({"alpha": 1.5}, {"temperature": 0}, {"layer_map": []}, {"epochs": 0}, {"no_such_key": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DistillConfig(**bad)
    with pytest.raises(ValueError, match="names a student layer twice"):
        DistillConfig(layer_map=[LayerPair(student=0, teacher=0), LayerPair(student=0, teacher=1)])
