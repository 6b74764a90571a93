"""The teacher's outputs: right rows in the right order, resumable, and refused when of another teacher or data."""

import json

import numpy as np
import pytest
import torch

import edgekit.distillation.signal as signal_module
from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.distillation.signal import read_signal
from edgekit.distillation.stage import CaptureConfig, DistillConfig, capture, capture_config, distill
from edgekit.errors import ArtifactError, TrainingError
from edgekit.models.source import load_model
from tests.distillation.training import Recorder
from tests.pico import pico_data_artifact, pico_loaded, pico_model_artifact, publish_model


def run(teacher, data, out, config=None, **settings):
    context = StageContext(out, **{"events": Recorder(), **settings})
    return capture(
        StageInputs(teacher=teacher, data=data), config or CaptureConfig(batch_size=16, precision="float32"), context
    )


@pytest.fixture(scope="module")
def captured(place, teacher, data):
    return run(teacher, data, place / "captured")


def test_every_row_has_the_logits_that_the_teacher_gives_it_alone(captured, teacher, data):
    loaded, prepared = load_model(teacher), PreparedData.open(data)
    splits = ["train", "validation", "unlabelled"]
    signal = read_signal(captured, teacher, data, splits)
    for name in splits:
        texts = prepared.split(name).texts
        assert signal.logits[name].shape == (len(texts), 2)
        assert signal.logits[name].dtype == np.float32
        for row in (0, 1, len(texts) - 1):
            inputs = loaded.tokenizer(texts[row], truncation=True, max_length=32, return_tensors="pt")
            with torch.no_grad():
                alone = loaded.model(**inputs).logits[0].numpy()
            np.testing.assert_allclose(signal.logits[name][row], alone, atol=1e-5)


def test_the_artifact_says_what_it_is_of(captured, teacher, data):
    description = json.loads((captured.path / "signal.json").read_text())
    assert description == {
        "format": 1,
        "teacher": teacher.digest,
        "data": data.digest,
        "labels": ["negative", "positive"],
        "max_length": 32,
        "rows": {"train": 96, "validation": 32, "unlabelled": 40},
    }
    assert captured.kind == "signal"
    assert captured.lineage.stage == "capture"
    assert Artifact.open(captured.path).digest == captured.digest


def test_capturing_again_gives_the_same_bytes_and_reports_rows(captured, teacher, data, tmp_path):
    recorder = Recorder()
    assert run(teacher, data, tmp_path / "again", events=recorder).digest == captured.digest
    assert recorder.of("progress")[-1].completed == recorder.of("progress")[-1].total == 168


def test_unlabelled_text_can_be_left_out(teacher, data, tmp_path):
    made = run(teacher, data, tmp_path / "out", CaptureConfig(use_unlabelled=False))
    assert read_signal(made, teacher, data, ["train"]).logits.keys() == {"train", "validation"}
    with pytest.raises(ArtifactError, match="not for unlabelled"):
        read_signal(made, teacher, data, ["train", "unlabelled"])


def test_an_interrupted_capture_goes_on_where_it_was(captured, teacher, data, tmp_path, monkeypatch):
    monkeypatch.setattr(signal_module, "_SHARD_ROWS", 32)
    work = tmp_path / "work"

    def interrupt(event):
        if event.completed >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(teacher, data, tmp_path / "out", events=interrupt, work_directory=work)
    assert len(list((work / "signal").iterdir())) == 2
    assert not (tmp_path / "out").exists()
    calls = []
    run_teacher = signal_module._run_teacher
    monkeypatch.setattr(signal_module, "_run_teacher", lambda *a: calls.append(1) or run_teacher(*a))
    resumed = run(teacher, data, tmp_path / "out", work_directory=work)
    assert len(calls) == 4  # 168 rows are 6 parts
    fresh = run(teacher, data, tmp_path / "fresh")
    assert resumed.digest == fresh.digest


def test_parts_of_another_capture_are_not_used(teacher, student, data, tmp_path):
    run(student, data, tmp_path / "other", work_directory=tmp_path / "work")
    made = run(teacher, data, tmp_path / "out", work_directory=tmp_path / "work")
    assert made.digest == run(teacher, data, tmp_path / "fresh").digest


def test_a_signal_of_another_teacher_or_other_data_is_refused(captured, teacher, student, data, tmp_path):
    other_teacher = pico_model_artifact(tmp_path, layers=4, seed=9)
    other_data = pico_data_artifact(tmp_path, rows=160, unlabelled=40, seed=5)
    config = DistillConfig(epochs=0.1)
    for role, chosen in (("teacher", (other_teacher, data)), ("data", (teacher, other_data))):
        inputs = StageInputs(model=student, teacher=chosen[0], data=chosen[1], signal=captured)
        with pytest.raises(ArtifactError, match=rf"was captured with the {role} .*edgekit capture"):
            distill(inputs, config, StageContext(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_logits_that_are_not_finite_name_the_row(data, tmp_path):
    loaded = pico_loaded(layers=1)
    word = loaded.tokenizer.convert_tokens_to_ids("tedious")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[word] = torch.nan
    broken = publish_model(loaded, tmp_path / "broken")
    texts = PreparedData.open(data).split("train").texts
    row = next(index for index, text in enumerate(texts) if "tedious" in text)
    with pytest.raises(TrainingError, match=rf"logits for train row {row} are \[nan, nan\]"):
        run(broken, data, tmp_path / "out")


def test_a_distillation_asks_for_the_capture_that_it_needs():
    config = DistillConfig(use_unlabelled=False, precision="float32", alpha=0.3, epochs=9)
    assert capture_config(config) == CaptureConfig(use_unlabelled=False, precision="float32")
