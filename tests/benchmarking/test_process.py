"""The measuring process: what it tells, how it fails, and that it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import random_scenario
from edgekit.errors import MeasurementError, ModelError
from edgekit.runtimes.protocol import get_runtime
from tests.benchmarking import fakes
from tests.runtimes.tiny import tiny_onnx_artifact


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


def subject(tiny, runtime=None) -> Subject:
    return Subject(tiny, runtime or get_runtime("onnxruntime"), random_scenario(tiny, 2, 8, seed=0))


def start(tiny, runtime=None, timeout_s=60.0) -> MeasuringProcess:
    return MeasuringProcess(subject(tiny, runtime), timeout_s)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_measures_a_real_session(tiny):
    with start(tiny) as process:
        opened = process.opened
        samples = process.sample(5, 10)
        few = process.sample(1_000_000, 0.05)
        memory = process.memory()
    assert len(samples) == 5
    assert all(sample > 0 for sample in samples)
    assert 1 <= len(few) < 1_000_000
    assert opened.load_ms > 0
    assert 0 < opened.baseline_bytes < opened.library_bytes <= memory.peak_bytes
    assert memory.anonymous_bytes + memory.file_bytes <= memory.peak_bytes * 1.01


def test_it_is_pinned_to_one_core(tiny):
    with start(tiny) as process:
        assert process.opened.cores
        assert len(process.opened.cores) == 1
        assert os.sched_getaffinity(process._process.pid) == set(process.opened.cores)


def test_it_loads_nothing_that_the_runtime_does_not_need(tiny):
    """Its peak memory is the runtime's: no pydantic, no torch, no tokenizer."""
    code = f"""
import sys
from edgekit.benchmarking.worker import open_model
measured, _ = open_model({{"runtime": "edgekit.runtimes.onnxruntime_runtime:OnnxRuntime", "path": {str(tiny.path)!r},
    "kind": "onnx", "threads": 1, "graph_optimization": True, "cores": []}})
measured.set_inputs({{"input_ids": [[[5, 6]]]}})
measured.sample({{"runs": 1, "seconds": 1}})
heavy = {{"pydantic", "torch", "transformers", "tokenizers", "pyarrow", "onnx", "scipy"}}
print(sorted(heavy & {{name.split(".")[0] for name in sys.modules}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "[]"


def test_a_killed_process_is_an_error_with_its_last_words(tiny):
    with pytest.raises(MeasurementError, match=r"SIGKILL \(often: out of memory\) during 'open'(.|\n)*about to vanish"):
        start(tiny, fakes.Killed()).__enter__()


def test_a_process_that_exits_is_an_error(tiny):
    with pytest.raises(MeasurementError, match="ended with exit code 7 during 'open'"):
        start(tiny, fakes.Exiting()).__enter__()


def test_a_process_that_hangs_is_ended(tiny):
    process = start(tiny, fakes.Hanging(), timeout_s=2.0)
    with pytest.raises(MeasurementError, match=r"no answer to 'open' within 2 s(.|\n)*timeout_s"):
        process.__enter__()
    assert not is_running(process._process.pid)


def test_an_error_of_edgekit_arrives_as_itself(tiny):
    with pytest.raises(ModelError, match="this file is not for me"):
        start(tiny, fakes.Refusing()).__enter__()


def test_an_error_of_a_library_names_the_model_and_one_line(tiny):
    with start(tiny, fakes.Failing()) as process, pytest.raises(MeasurementError) as caught:
        process.sample(1, 1)
    message = str(caught.value)
    assert message.startswith(f"{tiny.path} in fake: failed during 'sample': RuntimeError: no kernel for this shape")
    assert "many more lines" not in message


def test_a_library_that_prints_does_not_disturb(tiny):
    with start(tiny, fakes.Chatty()) as process:
        assert len(process.sample(3, 1)) == 3


def test_an_interrupt_ends_the_process(tiny):
    process = start(tiny)
    with pytest.raises(KeyboardInterrupt), process:
        raise KeyboardInterrupt
    assert not is_running(process._process.pid)


def test_it_does_not_outlive_a_parent_that_was_killed(tiny):
    code = f"""
import sys, time
from edgekit.artifact import Artifact
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import random_scenario
from edgekit.runtimes.protocol import get_runtime
tiny = Artifact.open({str(tiny.path)!r})
with MeasuringProcess(Subject(tiny, get_runtime("onnxruntime"), random_scenario(tiny, 1, 8, seed=0)), 60) as process:
    print(process._process.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    with parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(100):
            if not is_running(child):
                break
            time.sleep(0.1)
    assert not is_running(child)
