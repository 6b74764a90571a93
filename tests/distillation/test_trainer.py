"""The loop: it learns, resumes to the same bits, keeps the best, and stops where it must."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit.distillation.checkpoint as checkpoint
import edgekit.distillation.trainer as trainer
from edgekit.contract import StageContext, StageInputs
from edgekit.distillation.stage import FinetuneConfig, finetune
from edgekit.errors import EnvironmentLacksError, TrainingError
from edgekit.models.source import load_model
from tests.distillation.training import FINETUNE, Recorder, assert_same_weights, weights
from tests.full_disk import files_of_at_most
from tests.pico import pico_loaded, publish_model

ROOT = Path(__file__).parents[2]


def run(model, data, out, config=FINETUNE, events=None, **settings):
    context = StageContext(out, events=events or Recorder(), **{"seed": 3, **settings})
    return finetune(StageInputs(model=model, data=data), config, context)


@pytest.fixture(scope="module")
def uninterrupted(place, teacher, data):
    return run(teacher, data, place / "uninterrupted")


def test_it_learns_and_tells_how_it_goes(teacher, data, tmp_path):
    recorder = Recorder()
    config = FinetuneConfig(epochs=12, batch_size=8, learning_rate=3e-3, evaluations_per_epoch=1)
    run(teacher, data, tmp_path / "out", config, recorder)
    progress, metrics = recorder.of("progress"), recorder.of("metric")
    assert [event.completed for event in progress] == list(range(1, 145))
    assert {event.total for event in progress} == {144}
    assert {"loss", "learning_rate", "rows_per_s"} <= progress[0].values.keys()
    assert progress[-1].values["loss"] < progress[0].values["loss"]
    assert [event.completed for event in metrics] == list(range(12, 145, 12))
    assert max(event.values["accuracy"] for event in metrics) >= 0.85


def test_the_weights_saved_are_those_of_the_best_evaluation(teacher, data, tmp_path):
    recorder = Recorder()
    config = FinetuneConfig(epochs=3, batch_size=8, learning_rate=5e-3, schedule="constant", evaluations_per_epoch=4)
    made = run(teacher, data, tmp_path / "out", config, recorder)
    scores = [(event.values["accuracy"], -event.values["cross_entropy"]) for event in recorder.of("metric")]
    again = Recorder()
    # a learning rate too small to move float32 weights evaluates what was saved
    run(made, data, tmp_path / "again", FinetuneConfig(epochs=0.01, learning_rate=1e-30), again)
    found = again.of("metric")[0].values
    assert found["accuracy"] == pytest.approx(max(scores)[0])
    assert found["cross_entropy"] == pytest.approx(-max(scores)[1], rel=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(teacher, data, uninterrupted, tmp_path):
    assert_same_weights(run(teacher, data, tmp_path / "same"), uninterrupted)
    other = run(teacher, data, tmp_path / "other", seed=4)
    assert not torch.equal(weights(other)["classifier.weight"], weights(uninterrupted)["classifier.weight"])


def test_nothing_global_changes(teacher, data, tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads())
    run(teacher, data, tmp_path / "out", FinetuneConfig(epochs=0.2, batch_size=8))
    after = (random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads())
    assert before[0] == after[0]
    assert all(np.array_equal(left, right) for left, right in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]
    assert torch.is_grad_enabled()


def test_what_the_caller_drew_before_does_not_matter(teacher, data, uninterrupted, tmp_path):
    torch.manual_seed(999)
    random.seed(999)
    assert_same_weights(run(teacher, data, tmp_path / "out"), uninterrupted)


def test_when_checkpoints_are_written_does_not_matter(teacher, data, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(trainer, "_CHECKPOINT_SHARE", 1e9)
    made = run(teacher, data, tmp_path / "out", work_directory=tmp_path / "work")
    assert_same_weights(made, uninterrupted)
    kept = list((tmp_path / "work" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000023"]


def kill_after(step, arguments):
    """Starts a training process and kills it as soon as it says that `step` is done; returns its last line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.distillation.training", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = ""
    for line in process.stdout:
        if line.startswith("training") and int(line.split()[-1]) >= step:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return line


def test_a_killed_run_resumes_to_the_same_bits(teacher, data, uninterrupted, tmp_path):
    work = tmp_path / "work"
    kill_after(10, ["finetune", teacher.path, data.path, work, tmp_path / "out"])
    assert not (tmp_path / "out").exists()
    latest = json.loads(next((work / "checkpoints").glob("step-*/state.json")).read_text())
    assert 9 <= latest["step"] < 24
    recorder = Recorder()
    made = run(teacher, data, tmp_path / "out", events=recorder, work_directory=work)
    assert_same_weights(made, uninterrupted)
    assert recorder.of("message")[0].text == f"Resumed after step {latest['step']} of 24."
    assert recorder.of("progress")[0].completed == latest["step"] + 1


def test_a_half_written_checkpoint_is_not_used(teacher, data, uninterrupted, tmp_path, monkeypatch):
    work = tmp_path / "work"
    interrupt_at(7, teacher, data, tmp_path / "out", work)
    whole = next((work / "checkpoints").glob("step-*"))
    partial = work / "checkpoints" / ".partial-step-00000009"
    partial.mkdir()
    (partial / "learner.safetensors").write_bytes((whole / "learner.safetensors").read_bytes()[:100])
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    assert_same_weights(run(teacher, data, tmp_path / "out", work_directory=work), uninterrupted)
    assert not partial.exists()


def interrupt_at(step, model, data, out, work, config=FINETUNE):
    def interrupt(event):
        if event.kind == "progress" and event.completed == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, data, out, config, interrupt, work_directory=work)


def test_an_interrupt_leaves_a_checkpoint_of_the_step_just_done(teacher, data, uninterrupted, tmp_path):
    work = tmp_path / "work"
    interrupt_at(11, teacher, data, tmp_path / "out", work)
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["step-00000011"]
    assert not (tmp_path / "out").exists()
    assert_same_weights(run(teacher, data, tmp_path / "out", work_directory=work), uninterrupted)


def test_a_second_interrupt_at_the_same_step_cannot_destroy_the_only_checkpoint(
    teacher, data, uninterrupted, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    interrupt_at(11, teacher, data, tmp_path / "out", work)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_step", interrupted)  # interrupted before a step, so saved at 11 again
        patch.setattr(checkpoint.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, data, tmp_path / "out", work_directory=work)
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["step-00000011"]
    assert_same_weights(run(teacher, data, tmp_path / "out", work_directory=work), uninterrupted)


@pytest.mark.parametrize("name", ["state.json", "learner.safetensors", "optimizer.safetensors", "best.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over_for_the_one_before(teacher, data, tmp_path, name):
    work = tmp_path / "work"
    interrupt_at(11, teacher, data, tmp_path / "out", work)
    whole = work / "checkpoints" / "step-00000011"
    newer = shutil.copytree(whole, whole.with_name("step-00000013"))
    (newer / name).unlink()
    assert checkpoint.Checkpoints(whole.parent, "any").latest == whole


def test_an_interrupt_inside_the_optimizer_keeps_the_checkpoint_before(
    teacher, data, uninterrupted, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    interrupt_at(5, teacher, data, tmp_path / "out", work)
    step = torch.optim.AdamW.step

    def interrupted_step(self, *arguments):
        step(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, data, tmp_path / "out", work_directory=work)
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["step-00000005"]
    assert_same_weights(run(teacher, data, tmp_path / "out", work_directory=work), uninterrupted)


def test_a_checkpoint_of_another_run_is_refused(teacher, data, tmp_path):
    work = tmp_path / "work"
    interrupt_at(3, teacher, data, tmp_path / "out", work)
    with pytest.raises(TrainingError, match=r"is a checkpoint of another run.*Remove"):
        run(teacher, data, tmp_path / "out", FINETUNE.model_copy(update={"weight_decay": 0.5}), work_directory=work)


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(teacher, data, tmp_path):
    work = tmp_path / "work"
    interrupt_at(3, teacher, data, tmp_path / "out", work)
    file = next((work / "checkpoints").glob("step-*")) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"cannot be read.*Remove .* to start over"):
        run(teacher, data, tmp_path / "out", work_directory=work)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 2), (4, 4), (3, 6)])
def test_accumulation_does_not_change_the_maths(teacher, data, tmp_path, batch_size, accumulation):
    size = batch_size * accumulation

    def first_steps(name, **settings):
        recorder = Recorder()
        exact = {"precision": "float32", "dropout": 0.0}
        config = FinetuneConfig(epochs=1, learning_rate=1e-4, evaluations_per_epoch=1, **exact, **settings)
        run(teacher, data, tmp_path / name, config, recorder)
        return [(event.values["loss"], event.values["gradient_norm"]) for event in recorder.of("progress")]

    whole = first_steps("whole", batch_size=size)
    parts = first_steps("parts", batch_size=batch_size, gradient_accumulation_steps=accumulation)
    assert len(whole) == -(-96 // size)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_early_stopping_counts_evaluations_without_a_better_one(teacher, data, tmp_path):
    recorder = Recorder()
    config = FinetuneConfig(epochs=50, batch_size=8, learning_rate=1e-30, patience=2, evaluations_per_epoch=1)
    run(teacher, data, tmp_path / "out", config, recorder)
    assert len(recorder.of("metric")) == 3
    assert recorder.of("progress")[-1].completed == 36


def poisoned(place, name="poisoned"):
    """A model whose embedding of one word is not a number: only batches with that word fail."""
    loaded = pico_loaded(seed=0)
    word = loaded.tokenizer.convert_tokens_to_ids("tedious")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[word] = torch.nan
    return publish_model(loaded, place / name)


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_last_good_checkpoint(place, data, tmp_path):
    work = tmp_path / "work"
    with pytest.raises(TrainingError) as caught:
        run(poisoned(tmp_path), data, tmp_path / "out", work_directory=work)
    message = str(caught.value)
    assert "the loss is nan" in message
    assert "train row" in message
    assert "it begins with" in message
    assert not (tmp_path / "out").exists()
    kept = next((work / "checkpoints").glob("step-*"))
    assert str(kept) in message
    assert (kept / "learner.safetensors").is_file()


def test_without_a_work_directory_the_message_says_that_nothing_was_kept(data, tmp_path):
    with pytest.raises(TrainingError, match="nothing was kept"):
        run(poisoned(tmp_path), data, tmp_path / "out")


def test_an_exploding_gradient_stops_the_run_before_the_weights_change(teacher, data, tmp_path, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *arguments: torch.tensor(float("inf")))
    work = tmp_path / "work"
    with pytest.raises(TrainingError, match="step 1 of 24: the gradient's norm is inf"):
        run(teacher, data, tmp_path / "out", work_directory=work)
    loaded = load_model(teacher)
    kept = weights_of_checkpoint(work)
    assert torch.equal(kept["model.classifier.weight"], loaded.model.classifier.weight)


def weights_of_checkpoint(work):
    from safetensors.torch import load_file

    return load_file(next((work / "checkpoints").glob("step-*")) / "learner.safetensors")


def test_tensorboard_logs_are_in_the_work_directory_and_can_be_read(teacher, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = run(teacher, data, tmp_path / "out", work_directory=tmp_path / "work")
    events = EventAccumulator(str(tmp_path / "work" / "tensorboard"))
    events.Reload()
    assert {"training/loss", "training/learning_rate", "validation/accuracy"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("training/loss")) == 24
    assert set(made.files) == {
        "config.json",
        "model.safetensors",
        "task.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_bf16_trains_float32_weights(teacher, data, tmp_path):
    config = FINETUNE.model_copy(update={"precision": "bf16", "epochs": 0.3})
    made = run(teacher, data, tmp_path / "out", config)
    assert {value.dtype for value in weights(made).values()} == {torch.float32}


def test_a_full_disk_is_an_error_that_says_how_to_go_on(teacher, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    full = pytest.raises(EnvironmentLacksError, match=r"checkpoint could not be written \(File too large\).*Free disk")
    with full, files_of_at_most(50_000):
        run(teacher, data, tmp_path / "out", work_directory=tmp_path / "work")
    assert not (tmp_path / "out").exists()
