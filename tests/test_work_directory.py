from pathlib import Path

import edgekit
from edgekit.work_directory import clear_work_directory
from tests.pico import pico_data_artifact, pico_model_artifact


def test_only_the_logs_stay(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "tensorboard").mkdir(parents=True)
    (work / "tensorboard" / "events").write_text("new")
    (work / "checkpoint").write_text("weights")
    logs = tmp_path / "logs" / "distill"
    logs.mkdir(parents=True)
    (logs / "older").write_text("old")
    clear_work_directory(work, logs)
    assert not work.exists()
    assert {file.name: file.read_text() for file in logs.iterdir()} == {"events": "new"}


def test_a_training_leaves_its_logs_beside_the_artifact(tmp_path: Path) -> None:
    model, data = pico_model_artifact(tmp_path), pico_data_artifact(tmp_path)
    edgekit.finetune(model, data=data, out=tmp_path / "tuned", config=edgekit.FinetuneConfig(epochs=1))
    assert list((tmp_path / "tuned.logs").glob("events.*"))
    assert not (tmp_path / ".tuned.work").exists()
