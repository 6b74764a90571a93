"""Two processes do the mathematics of one: the same losses, weights and text; and none outlives another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.artifact import Artifact
from edgekit.distillation.processes import wait_for_all
from edgekit.errors import TrainingError
from tests.distillation.test_trainer import ROOT
from tests.distillation.training import assert_same_weights, poisoned_decoder, weights
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

SLOW_KINDS = ("sharded", "captured", "written", "sharded written", "matched", "sharded matched")
SHARDED = {"ACCELERATE_USE_FSDP": "true"}  # what `accelerate launch --use_fsdp` tells the processes


@pytest.fixture(scope="module")
def language_data(place: Path) -> Artifact:
    return pico_language_data(place, documents=60, seed=3)


@pytest.fixture(scope="module")
def speaker(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=7), place / "shared-speaker")


@pytest.fixture(scope="module")
def learner(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=8, layers=2), place / "shared-learner")


@pytest.fixture(scope="module")
def narrow(place: Path) -> Artifact:
    """A student of another hidden size than its teacher: projections are learned as well."""
    return publish_model(pico_decoder("llama", seed=8, layers=2, hidden_size=16), place / "shared-narrow")


class Group:
    """Processes of one run, as a launcher would start them, each with its own error output."""

    def __init__(self, count: int, arguments: list[object], **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = []
        for rank in range(count):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if count > 1 else {}
            environment = {**os.environ, "ACCELERATE_USE_CPU": "true", **settings}
            environment |= {name: str(value) for name, value in {**place, **(ranks if count > 1 else {})}.items()}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.distillation.training", *map(str, arguments)],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def finish(self, seconds: float = 120) -> list[tuple[int, str, str]]:
        """Returns exit code, output and errors of each process."""
        found = []
        for process in self.processes:
            output, errors = process.communicate(timeout=seconds)
            found.append((process.returncode, output, errors))
        return found

    def lines(self) -> Iterator[str]:
        """Yields what the first process writes, as it does."""
        assert self.processes[0].stdout is not None
        yield from self.processes[0].stdout


def share(count: int, tmp_path: Path, name: str, *artifacts: Artifact, config: object = None, **settings: str):
    """Returns losses and scores of a distillation, the student, and what the main process wrote."""
    student, data, teacher = artifacts
    arguments = ["share", student.path, data.path, tmp_path / f"work-{name}", tmp_path / name, teacher.path]
    group = Group(count, arguments, EDGEKIT_TEST_CONFIG=json.dumps(config or {}), **settings)
    done = group.finish()
    assert [code for code, _, _ in done] == [0] * count, [errors[-3000:] for _, _, errors in done]
    return json.loads(done[0][1].strip().splitlines()[-1]), Artifact.open(tmp_path / name), done[0][1]


@pytest.fixture(scope="module")
def alone(place: Path, speaker: Artifact, learner: Artifact, language_data: Artifact):
    return share(1, place, "alone", learner, language_data, speaker)


@pytest.mark.parametrize(
    "kind",
    ["replicated", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_KINDS)],
)
def test_two_processes_have_the_losses_and_weights_of_one(
    alone, speaker: Artifact, learner: Artifact, narrow: Artifact, language_data: Artifact, tmp_path: Path, kind: str
) -> None:
    config: dict[str, object] = {}
    expected, reference, _ = alone
    if kind.endswith(("captured", "written")):
        written = {"share": 0.5, "max_new_tokens": 8, "prompt_tokens": 4}
        changes = {"signal": "top-k", "k": 20} if kind == "captured" else {"on_policy": written}
        config = {"language": {"sequence_length": 64, **changes}}
    if kind.endswith("matched"):
        written = {"share": 0.3, "max_new_tokens": 8, "prompt_tokens": 4}
        config = {"hidden_state_weight": 0.5, "attention_relation_weight": 0.5, "gradient_checkpointing": True}
        config |= {"language": {"sequence_length": 64, "on_policy": written}}
        learner = narrow
    if config:
        expected, reference, _ = share(1, tmp_path, "one", learner, language_data, speaker, config=config)
    is_sharded = kind.startswith("sharded")
    settings = SHARDED if is_sharded else {}
    how = "a share of the weights (FSDP)" if is_sharded else "all weights"
    found, made, output = share(2, tmp_path, "two", learner, language_data, speaker, config=config, **settings)
    assert f"2 processes, each with {how}." in output
    assert len(found) == len(expected) > 5
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4)
    left, right = weights(made), weights(reference)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=2e-4, rtol=2e-3)


def until_step(group: Group, step: int) -> None:
    """Waits until the main process has told of `step`."""
    for line in group.lines():
        if line.startswith("training") and int(line.split()[-1]) >= step:
            return
    raise AssertionError(group.finish())


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on_to_the_same_bits(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    _, expected, _ = share(2, tmp_path, "whole", learner, language_data, speaker)
    arguments = ["share", learner.path, language_data.path, tmp_path / "work", tmp_path / "out", speaker.path]
    group = Group(2, arguments)
    until_step(group, 3)
    group.processes[1].send_signal(signal.SIGKILL)
    died = time.monotonic()
    codes = [(code, errors) for code, _, errors in group.finish(60)]
    assert time.monotonic() - died < 30
    assert codes[1][0] == -signal.SIGKILL
    assert codes[0][0] != 0
    assert "distill: process 0 of 2: another process of the run is gone" in codes[0][1]
    assert "Run the same command again: it goes on from what was kept." in codes[0][1]
    assert not (tmp_path / "out").exists()
    again = Group(2, arguments)
    done = again.finish()
    assert [code for code, _, _ in done] == [0, 0], done
    assert "Resumed after step" in done[0][1]
    assert_same_weights(Artifact.open(tmp_path / "out"), expected)


@pytest.mark.slow
def test_a_sharded_run_that_is_killed_goes_on_to_the_same_bits(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    _, expected, _ = share(2, tmp_path, "whole", learner, language_data, speaker, **SHARDED)
    arguments = ["share", learner.path, language_data.path, tmp_path / "work", tmp_path / "out", speaker.path]
    group = Group(2, arguments, **SHARDED)
    until_step(group, 3)
    for process in group.processes:
        process.send_signal(signal.SIGKILL)
    group.finish()
    done = Group(2, arguments, **SHARDED).finish()
    assert [code for code, _, _ in done] == [0, 0], done
    assert "Resumed after step" in done[0][1]
    assert_same_weights(Artifact.open(tmp_path / "out"), expected)


@pytest.mark.slow
def test_numbers_lost_on_one_process_stop_all_with_the_rows_named(speaker: Artifact, tmp_path: Path) -> None:
    broken, language_data = poisoned_decoder(tmp_path / "broken"), pico_language_data(tmp_path, seed=1)
    arguments = ["share", broken.path, language_data.path, tmp_path / "work", tmp_path / "out", speaker.path]
    for code, _, errors in Group(2, arguments).finish():
        assert code != 0
        assert "TrainingError: distill: step " in errors
        assert "the loss is nan, expected a finite number. The batch: sequence " in errors
        assert "The last good checkpoint is " in errors


class Deserted:
    """The state of a process whose only other one has died."""

    num_processes, process_index = 2, 0

    def wait_for_everyone(self) -> None:
        raise RuntimeError("[/w/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:413. This is typically ...")


def test_a_process_that_has_published_needs_no_other_and_one_that_waits_says_who_is_gone() -> None:
    wait_for_all("capture", Deserted(), has_published=True)
    gone = r"process 0 of 2: another process of the run is gone \(Connection closed by peer \[127\.0\.0\.1\]:413\)"
    with pytest.raises(TrainingError, match=gone):
        wait_for_all("capture", Deserted())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_teacher_is_shared_by_two_processes_and_says_the_same(architecture: str) -> None:
    for code, output, errors in Group(2, ["share-teacher", architecture], **SHARDED).finish():
        assert code == 0, errors[-3000:]
        told = json.loads(output.strip().splitlines()[-1])
        assert told["same"]
        assert told["share"] == pytest.approx(0.5, abs=0.02), "half of the layers' weights"
        assert told["head"] == 32, "the output layer is whole: (V, 32)"
