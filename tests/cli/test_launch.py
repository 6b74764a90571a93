"""Of the processes that a launcher starts, one tells of the run; each tells of its own error."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli import launch, run
from tests.distillation.test_trainer import ROOT
from tests.pico import pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data


@pytest.mark.parametrize(
    ("told", "number", "count"),
    [
        ({}, 0, 1),
        ({"RANK": "3", "WORLD_SIZE": "8"}, 3, 8),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1, 2),
        ({"RANK": "", "WORLD_SIZE": ""}, 0, 1),
    ],
)
def test_a_launcher_tells_by_the_environment(monkeypatch, told, number, count):
    for name in (*launch._RANKS, *launch._COUNTS):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert (launch.process_number(), launch.process_count()) == (number, count)
    assert launch.is_main_process() == (number == 0)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_only_the_main_process_shows_events_and_results(monkeypatch, tmp_path, capsys, flags):
    model, data = pico_model_artifact(tmp_path / "model"), pico_data_artifact(tmp_path / "data")
    arguments = ["evaluate", str(model.path), "--data", str(data.path), *flags]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run([*arguments, str(tmp_path / "second")]) == 0
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert run([*arguments, str(tmp_path / "first")]) == 0
    assert "accuracy" in capsys.readouterr().out.lower()


def test_an_error_is_told_by_every_process_under_its_number(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(["verify", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("edgekit, process 1 of 2: nowhere: does not exist")


def test_two_processes_say_once_that_they_are_done(tmp_path: Path) -> None:
    teacher = publish_model(pico_decoder("llama", layers=1), tmp_path / "teacher")
    data = pico_language_data(tmp_path, documents=20)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "tuned"
    options = ["--epochs", "1", "--language.sequence-length", "32", "--precision", "float32", "--data", str(data.path)]
    common = {**os.environ, "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "edgekit.cli", "finetune", str(teacher.path), str(out), *options],
            cwd=ROOT,
            env={**common, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0].split() == [str(out)]
    assert told[0][1].count("finetune: done in") == 1
    assert told[1][0] == ""
    assert "finetune" not in told[1][1]
    # both have cleared up without taking the logs from each other
    assert list((tmp_path / "tuned.logs").iterdir())
    assert not list(tmp_path.glob(".tuned.work*"))
