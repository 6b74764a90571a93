"""ExecuTorch's runtime: threads as asked for, files that it cannot open, and texts that are too long."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import edgekit
from edgekit.errors import ModelError, UsageError
from edgekit.runtimes.executorch_runtime import ExecuTorchRuntime, open_program, thread_count
from edgekit.runtimes.protocol import SessionConfig, model_file
from edgekit.runtimes.silence import silent_library
from tests.pico import MAX_LENGTH, pico_model_artifact

pytest.importorskip("executorch")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    model = pico_model_artifact(place / "model", layers=1)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(bits=8), out=place / "student")
    return edgekit.export(student, edgekit.ExportConfig(format="executorch"), out=place / "executorch")


def text(rows=1, length=9):
    ids = np.random.default_rng(length).integers(5, 100, size=(rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}


def test_each_call_uses_the_threads_of_its_session_and_says_nothing(made, capfd):
    sessions = {threads: ExecuTorchRuntime().open(made, SessionConfig(threads=threads)) for threads in (1, 2, 3)}
    expected = sessions[1].run(text())["logits"]
    for threads in (3, 1, 2, 2, 1):
        np.testing.assert_allclose(sessions[threads].run(text())["logits"], expected, atol=1e-6)
        assert thread_count() == threads
    assert capfd.readouterr() == ("", "")


def test_threads_of_a_program_may_call_sessions_with_other_numbers_of_threads(made):
    sessions = [ExecuTorchRuntime().open(made, SessionConfig(threads=threads)) for threads in (1, 2)]
    expected = {length: sessions[0].run(text(2, length))["logits"] for length in range(1, 9)}
    wrong = []

    def call(session):
        for length, logits in expected.items():
            if not np.allclose(session.run(text(2, length))["logits"], logits, atol=1e-6):
                wrong.append(length)

    callers = [threading.Thread(target=call, args=(sessions[index % 2],)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_only_one_thread_runs_where_one_is_asked_for(made):
    program = (
        "import os, pathlib, sys, numpy\n"
        "from edgekit.runtimes.executorch_runtime import open_program\n"
        "import torch; torch.set_num_threads(1)\n"
        "counts = []\n"
        "for threads in (1, 3):\n"
        "    before = len(os.listdir('/proc/self/task'))\n"
        "    session = open_program(pathlib.Path(sys.argv[1]), threads=threads)\n"
        "    session.run({name: numpy.ones((1, 20), dtype='int64') for name in session.input_names})\n"
        "    counts.append(len(os.listdir('/proc/self/task')))\n"
        "print(*counts)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(model_file(made))], capture_output=True, text=True, check=True
    )
    one, three = map(int, ran.stdout.split())
    assert three == one + 2


def test_it_reads_names_and_ignores_what_it_does_not_need(made):
    session = ExecuTorchRuntime().open(made, SessionConfig())
    assert session.input_names == ["input_ids", "attention_mask", "token_type_ids"]
    assert session.output_names == ["logits"]
    answer = session.run(text() | {"another": np.zeros(3)})["logits"]
    assert (answer.shape, answer.dtype) == ((1, 2), np.float32)


def test_a_text_that_is_too_long_is_refused(made):
    session = ExecuTorchRuntime().open(made, SessionConfig())
    session.run(text(1, MAX_LENGTH))
    with pytest.raises(UsageError, match=f"found {MAX_LENGTH + 1} tokens, expected at most {MAX_LENGTH}"):
        session.run(text(1, MAX_LENGTH + 1))


def test_a_broken_file_is_a_clear_error(made, tmp_path):
    content = model_file(made).read_bytes()
    for broken in (b"not a model", content[: len(content) // 2]):
        (tmp_path / "model.pte").write_bytes(broken)
        with pytest.raises(ModelError, match=r"model\.pte: ExecuTorch cannot open it .*Export it again"):
            open_program(tmp_path / "model.pte", threads=1)


def test_a_file_of_others_is_a_clear_error(tmp_path):
    import torch

    with silent_library():
        from executorch.exir import to_edge

        program = to_edge(torch.export.export(torch.nn.ReLU(), (torch.ones(2),))).to_executorch()
    (tmp_path / "model.pte").write_bytes(program.buffer)
    with pytest.raises(ModelError, match="found the methods forward, expected forward and input_names"):
        open_program(tmp_path / "model.pte", threads=1)


def test_opening_prints_nothing_and_does_not_import_the_compiler(made):
    program = (
        "import pathlib, sys\n"
        "from edgekit.runtimes.executorch_runtime import open_program\n"
        "open_program(pathlib.Path(sys.argv[1]), threads=1)\n"
        "print([name for name in sys.modules if name.startswith('executorch.exir')])\n"
    )
    command = [sys.executable, "-c", program, str(model_file(made))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
