"""onnxruntime-web in a real headless Chromium: Python's logits, its threads, its memory, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.artifact import Artifact, Lineage, publish
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.result_files import read_measurement
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.contract import StageContext, StageInputs
from edgekit.doctor import examine
from edgekit.errors import EnvironmentLacksError, MeasurementError, MemoryLimitError, ModelError
from edgekit.exporters.parity import read_parity
from edgekit.runtimes.browser_runtime import (
    BROWSER_VARIABLE,
    OnnxRuntimeWeb,
    browser_program,
    find_browser,
    missing_browser,
)
from edgekit.runtimes.npm_packages import LOCATION_VARIABLE
from edgekit.runtimes.own_process import Program
from edgekit.runtimes.protocol import SessionConfig, get_runtime
from tests.pico import pico_data_artifact, pico_model_artifact, pico_tokenizer
from tests.runtimes.tiny import expected_logits, tiny_onnx_artifact

PEERS = Path(__file__).parents[2] / ".peers" / "node_modules"
QUICK = {"min_samples": 5, "min_seconds": 0.05, "length": 8, "pairs": 5}
IDS = np.array([[5, 6, 7, 8]], dtype=np.int64)
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}

needs_browser = pytest.mark.skipif(
    find_browser() is None or not (PEERS / "onnxruntime-web").is_dir(),
    reason="needs Chromium (apt-get install chromium) and `make peers`",
)


class NotIsolated(OnnxRuntimeWeb):
    """A server that does not tell the browser to keep the page apart."""

    def describe(self, model):
        return {**super().describe(model), "isolated": False}


@pytest.fixture(autouse=True)
def place(monkeypatch):
    """Where profiles of browsers are made; the path is short, for there are sockets in them."""
    monkeypatch.setenv(LOCATION_VARIABLE, str(PEERS))
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("onnx") / "onnx")


def processes_at(place: Path) -> list[str]:
    """Returns the command lines of the processes that name the directory or run in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + b"\0" + (process / "environ").read_bytes()
        except OSError:
            continue
        if text.strip(b"\0") and str(place).encode() in text and int(process.name) != os.getpid():
            found.append(text.split(b"\0")[0].decode())
    return found


def assert_nothing_is_left(place: Path) -> None:
    deadline = time.monotonic() + 20
    while (processes_at(place) or list(place.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_at(place) == []
    assert list(place.iterdir()) == []


@needs_browser
@pytest.mark.runtime
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scheme", [None, {"bits": 8}, {"bits": 4, "group_size": 32, "activations": "float"}])
def test_logits_are_those_of_python(scheme, threads, tmp_path):
    student = pico_model_artifact(tmp_path / "model", layers=1)
    if scheme is not None:
        student = edgekit.quantize(student, edgekit.QuantizeConfig(**scheme), out=tmp_path / "student")
    made = edgekit.export(student, out=tmp_path / "onnx")
    here = get_runtime("onnxruntime").open(made, SessionConfig())
    there = OnnxRuntimeWeb().open(made, SessionConfig(threads))
    assert (there.input_names, there.output_names) == (here.input_names, here.output_names)
    for rows, length in ((1, 5), (3, 11)):
        ids = np.random.default_rng(0).integers(5, 100, size=(rows, length))
        mask = np.tril(np.ones((rows, length), dtype=np.int64), k=8)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
        np.testing.assert_allclose(there.run(inputs)["logits"], here.run(inputs)["logits"], atol=2e-3)
    if threads == 1:
        data = pico_data_artifact(tmp_path / "data")
        config = edgekit.CheckConfig(rows=16, runtime="onnxruntime-web")
        assert read_parity(edgekit.check(made, config, reference=student, data=data, out=tmp_path / "parity")).passed


@needs_browser
@pytest.mark.runtime
def test_weights_beside_the_file_are_read_too(tmp_path):
    import onnx

    tiny = tiny_onnx_artifact(tmp_path / "tiny")
    with publish(tmp_path / "apart", kind="onnx", lineage=Lineage(stage="source")) as directory:
        (directory / "onnx").mkdir()
        model = onnx.load(tiny.path / "onnx" / "model.onnx")
        settings = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 1024}
        onnx.save(model, directory / "onnx" / "model.onnx", **settings)
    apart = Artifact.open(tmp_path / "apart")
    assert (apart.path / "onnx" / "model.onnx_data").stat().st_size > 100
    logits = OnnxRuntimeWeb().open(apart, SessionConfig()).run(INPUTS)["logits"]
    np.testing.assert_allclose(logits, expected_logits(IDS, IDS * 0 + 1, len(pico_tokenizer("bert"))), atol=1e-5)


@needs_browser
@pytest.mark.runtime
def test_it_is_measured_in_its_page_with_one_and_two_threads(onnx, tmp_path, place):
    threads = [1] if len(os.sched_getaffinity(0)) == 1 else [1, 2]
    found = []
    for count in threads:
        config = BenchConfig(runtime="onnxruntime-web", threads=count, **QUICK)
        found.append(read_measurement(bench(StageInputs(model=onnx), config, StageContext(tmp_path / f"{count}"))))
    for each in found:
        package, _, browser = each.runtime_version.partition(" in ")
        assert package == get_runtime("onnxruntime-web-node").version()
        assert browser.split()[-1][0].isdigit()
        assert each.p50_ms > 0
        assert each.load_ms > 0
        assert each.calls_per_sample > 1, "a call is far shorter than 100 steps of the page's clock"
        assert each.peak_rss_bytes > each.baseline_rss_bytes > 50 * 2**20
        assert each.library_rss_bytes > each.baseline_rss_bytes + 10 * 2**20, "WebAssembly was brought up"
        split = each.peak_split
        assert each.peak_rss_bytes >= split.anonymous_bytes + split.file_bytes + split.shared_bytes
        assert split.file_bytes > 50 * 2**20, "the browser's program is mapped: this is the page's process"
        assert len(each.pinned_cores) == each.threads
    pages = [each.page_bytes for each in found]
    assert 2**20 < pages[0] < found[0].peak_rss_bytes
    assert pages[1:] == [None] * len(pages[1:]), "threads that wait do not answer the browser"
    assert_nothing_is_left(place)


@needs_browser
@pytest.mark.runtime
def test_a_server_and_a_memory_limit_work_there_too(onnx, tmp_path, place):
    config = BenchConfig(runtime="onnxruntime-web", scenario="server", p99_bound_ms=500.0, **QUICK)
    made = bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
    assert read_measurement(made).under_load.scenario == "server"
    capped = BenchConfig(runtime="onnxruntime-web", memory_limit_mib=60, **QUICK)
    with pytest.raises(MemoryLimitError, match="found a limit of 60 MiB"):
        bench(StageInputs(model=onnx), capped, StageContext(tmp_path / "capped"))
    assert_nothing_is_left(place)


@needs_browser
@pytest.mark.runtime
def test_a_page_that_is_not_isolated_has_one_thread_and_a_coarse_clock(onnx):
    with pytest.raises(EnvironmentLacksError, match="not cross-origin isolated, expected one for 2 threads"):
        NotIsolated().open(onnx, SessionConfig(threads=2))
    scenario = random_scenario(onnx, 1, 8, seed=0)
    counts = {}
    for runtime in (OnnxRuntimeWeb(), NotIsolated()):
        with MeasuringProcess(Subject(onnx, runtime, scenario), timeout_s=60) as process:
            process.sample(3, 1.0)
            assert (process.memory().page_bytes is None) == isinstance(runtime, NotIsolated)
            counts[type(runtime)] = process.calls_per_sample
    assert counts[NotIsolated] > 3 * counts[OnnxRuntimeWeb], "its clock is 20 times as coarse"


@needs_browser
@pytest.mark.runtime
def test_a_browser_that_does_not_isolate_the_page_is_told(onnx):
    program = Program(browser_program())
    assert program.ask("about", isolated=False)["cross_origin_isolated"] is False
    with pytest.raises(EnvironmentLacksError, match="although it was served with Cross-Origin-Opener-Policy"):
        program.ask("open", threads=1, graph_optimization=True, **OnnxRuntimeWeb().describe(onnx))
    program.end()


@needs_browser
@pytest.mark.runtime
def test_a_wrong_file_is_told_and_the_browser_ends_with_the_session(onnx, tmp_path, place):
    session = OnnxRuntimeWeb().open(onnx, SessionConfig())
    session.run(INPUTS)
    assert len(processes_at(place)) > 3
    del session
    assert processes_at(place) == []
    assert list(place.iterdir()) == []
    broken = tiny_onnx_artifact(tmp_path / "onnx")
    (broken.path / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="onnxruntime-web cannot open it"):
        OnnxRuntimeWeb().open(broken, SessionConfig())
    assert_nothing_is_left(place)


@needs_browser
@pytest.mark.runtime
def test_nothing_is_left_of_a_worker_that_is_killed(onnx, place):
    session = OnnxRuntimeWeb().open(onnx, SessionConfig())
    session._program.process.kill()
    with pytest.raises(MeasurementError, match="ended during 'run'"):
        session.run(INPUTS)
    assert_nothing_is_left(place)


@needs_browser
@pytest.mark.runtime
def test_nothing_is_left_of_a_parent_that_is_killed(onnx, place):
    lines = (
        "import sys, time; from types import SimpleNamespace; from pathlib import Path",
        "from edgekit.runtimes.browser_runtime import OnnxRuntimeWeb, SessionConfig",
        "model = SimpleNamespace(path=Path(sys.argv[1]), kind='onnx')",
        "session = OnnxRuntimeWeb().open(model, SessionConfig()); print('open', flush=True); time.sleep(60)",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(onnx.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "open\n"
        assert len(processes_at(place)) > 3
        parent.kill()
    assert_nothing_is_left(place)


@needs_browser
@pytest.mark.runtime
@pytest.mark.parametrize(("whole", "message"), [(False, "the process of its page ended"), (True, "ended by SIGKILL")])
def test_a_browser_that_dies_while_it_is_measured_is_told(onnx, place, whole, message):
    with MeasuringProcess(Subject(onnx, OnnxRuntimeWeb(), random_scenario(onnx, 1, 8, seed=0)), 60) as process:
        process.sample(3, 1.0)
        victim = process.pid
        while whole and "--type=" in Path(f"/proc/{victim}/cmdline").read_text():
            victim = int(Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2].split()[1])
        threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
        with pytest.raises(MeasurementError, match=message):
            process.sample(10**9, 60.0)
    assert_nothing_is_left(place)


@needs_browser
@pytest.mark.runtime
def test_doctor_says_what_a_page_finds():
    (found,) = (finding for finding in examine() if finding.name == "browser: page")
    assert found.ok
    assert found.found.startswith("cross-origin isolated, a clock of ")
    assert "WebGPU: " in found.found


def test_a_browser_that_is_missing_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.delenv(BROWSER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "found no Chromium or Chrome. Install it: apt-get install chromium" in missing_browser()
    with pytest.raises(EnvironmentLacksError, match="runtime 'onnxruntime-web' is not available: found no Chromium"):
        get_runtime("onnxruntime-web")
    monkeypatch.setenv(BROWSER_VARIABLE, "/no/browser")
    assert f"found no program '/no/browser', which {BROWSER_VARIABLE} names" in OnnxRuntimeWeb().unavailable_reason()
    with pytest.raises(EnvironmentLacksError, match="apt-get install chromium"):
        OnnxRuntimeWeb().program()


def test_the_package_is_missing_too(monkeypatch, tmp_path):
    monkeypatch.setenv(BROWSER_VARIABLE, sys.executable)
    monkeypatch.setenv(LOCATION_VARIABLE, str(tmp_path))
    assert "npm install onnxruntime-web" in OnnxRuntimeWeb().unavailable_reason()


def test_a_browser_that_shows_no_page_is_told(tmp_path, place):
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    lines = (
        "import sys; from edgekit.runtimes import browser_worker; browser_worker._START_S = 1.0",
        "print(browser_worker.Worker(sys.argv[1]).answer({'command': 'about'})['error'])",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(program)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"{program}: its page did not answer within 1 s.\n"
    assert_nothing_is_left(place)


def test_a_program_that_is_no_browser_is_told(monkeypatch, tmp_path, place):
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\necho 'no display' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv(BROWSER_VARIABLE, str(program))
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.2.3"}')
    monkeypatch.setenv(LOCATION_VARIABLE, str(package.parent))
    with pytest.raises(EnvironmentLacksError, match="found no answer to --version"):
        OnnxRuntimeWeb().version()
    tiny = tiny_onnx_artifact(tmp_path / "onnx")
    with pytest.raises(MeasurementError, match=r"the browser ended with exit code 3\.[^$]*no display"):
        OnnxRuntimeWeb().open(tiny, SessionConfig())
    assert_nothing_is_left(place)
