"""Measuring on another machine: a real sshd on loopback, a worker of few files, and what goes wrong with devices."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgekit
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.benchmarking.result_files import read_comparison, read_measurement
from edgekit.benchmarking.ssh_device import WORKER_FILES, SshDevice
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import EnvironmentLacksError, MeasurementError, UsageError
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder
from tests.runtimes.tiny import tiny_onnx_artifact

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
QUICK = {"min_samples": 5, "min_seconds": 0.05, "length": 8, "pairs": 5, "device_python": sys.executable}

needs_sshd = pytest.mark.skipif(SSHD is None, reason="needs sshd: apt-get install openssh-server")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("onnx") / "onnx")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """Yields a running sshd and the name of the device that it is; `ssh` finds key and host key by a configuration."""
    place = tmp_path_factory.mktemp("sshd")
    for key in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / key], check=True)
    shutil.copy(place / "own.pub", place / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (place / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nAuthorizedKeysFile {place}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    (place / "ssh_config").write_text(
        f"IdentityFile {place}/own\nIdentitiesOnly yes\nUserKnownHostsFile {place}/known\n"
        "StrictHostKeyChecking accept-new\n"
    )
    program = place / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {place}/ssh_config "$@"\n')
    program.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-f", place / "sshd_config"], stderr=subprocess.DEVNULL)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{before}"
    try:
        _wait_for(port)
        yield process, f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        os.environ["PATH"] = before
        process.kill()
        process.wait()


def _wait_for(port):
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")


def left_behind():
    return set(Path(tempfile.gettempdir()).glob("edgekit-worker-*"))


@needs_sshd
def test_a_device_measures_as_this_machine_does_and_keeps_nothing(sshd, onnx, tmp_path):
    before = left_behind()
    config = BenchConfig(device=sshd[1], **QUICK)
    made = bench(StageInputs(model=onnx, reference=onnx), config, StageContext(tmp_path / "out"))
    found = read_measurement(made)
    assert found.machine == machine_fingerprint()
    assert len(found.pinned_cores) == 1
    assert found.p50_ms > 0
    assert found.peak_rss_bytes > found.library_rss_bytes > found.baseline_rss_bytes > 0
    assert found.conditions.load_average_after >= 0
    assert found.energy.source == "unavailable"
    assert read_comparison(made).rounds >= 12
    assert left_behind() == before
    assert {file.name for file in tmp_path.iterdir()} == {"out"}, "the journal goes when the measurement is there"


@needs_sshd
def test_the_command_measures_there_and_wants_a_place_to_keep_it(sshd, onnx, tmp_path, capsys):
    words = ["bench", str(onnx.path), "--device", sshd[1], "--device-python", sys.executable]
    assert run(words) == 2
    assert "found --device without OUT" in capsys.readouterr().err
    quick = ["--min-samples", "5", "--min-seconds", "0.05", "--length", "8"]
    assert run([*words[:2], str(tmp_path / "out"), *words[2:], *quick]) == 0
    assert "p50" in capsys.readouterr().out


@needs_sshd
def test_a_load_is_served_there_too(sshd, onnx, tmp_path):
    config = BenchConfig(device=sshd[1], scenario="sustained", sustained_s=2, **QUICK)
    made = bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
    assert read_measurement(made).under_load.scenario == "sustained"


@needs_sshd
def test_a_device_that_disappears_leaves_the_samples_until_then(sshd, onnx, tmp_path):
    journal = tmp_path / "out.samples.jsonl"

    def cut() -> None:
        while not journal.is_file():
            time.sleep(0.02)
        time.sleep(0.3)
        subprocess.run(["pkill", "-KILL", "-P", str(sshd[0].pid)], check=True)

    killer = threading.Thread(target=cut)
    killer.start()
    config = BenchConfig(device=sshd[1], **{**QUICK, "min_seconds": 60.0})
    with pytest.raises(
        MeasurementError, match=r"(?s)is gone: the connection to ssh://.* was lost.* samples until then"
    ):
        bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
    killer.join()
    assert '"samples_ns": [' in journal.read_text()
    assert not (tmp_path / "out").exists()


@needs_sshd
def test_a_python_that_is_missing_old_or_without_the_runtime_is_told_with_the_remedy(sshd, onnx, tmp_path):
    def problem(python):
        config = BenchConfig(device=sshd[1], **{**QUICK, "device_python": str(python)})
        with pytest.raises(EnvironmentLacksError) as caught:
            bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
        return str(caught.value)

    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho welcome\necho 3 9 /nowhere/edgekit-worker-0\n")
    old.chmod(0o755)
    odd = tmp_path / "odd"
    odd.write_text("#!/bin/sh\necho 3 12 /home\n")
    odd.chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = tmp_path / "bare" / "bin" / "python"
    assert "found no Python '/no/such/python' there" in problem("/no/such/python")
    assert f"found Python 3.9 as '{old}', expected at least 3.11" in problem(old)
    assert f"'{odd}' does not work there" in problem(odd), "what edgekit did not make is never removed"
    assert f"numpy and onnxruntime not installed for '{bare}' there. Install there: {bare} -m pip" in problem(bare)


@needs_sshd
def test_litert_and_openvino_run_there_or_the_package_to_install_is_named(sshd, onnx, tmp_path):
    pytest.importorskip("litert_torch")
    model = pico_model_artifact(tmp_path / "model", layers=1)
    made = edgekit.export(model, edgekit.ExportConfig(format="litert", lengths=[8]), out=tmp_path / "litert")
    config = BenchConfig(device=sshd[1], runtime="litert", **QUICK)
    found = read_measurement(bench(StageInputs(model=made), config, StageContext(tmp_path / "out")))
    assert (found.runtime, found.runtime_version) == ("litert", version("ai-edge-litert"))
    assert found.p50_ms > 0
    assert found.peak_rss_bytes > found.library_rss_bytes > found.baseline_rss_bytes > 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = tmp_path / "bare" / "bin" / "python"
    config = config.model_copy(update={"device_python": str(bare)})
    with pytest.raises(EnvironmentLacksError, match=f"Install there: {bare} -m pip install numpy ai-edge-litert$"):
        bench(StageInputs(model=made), config, StageContext(tmp_path / "none"))
    if find_spec("openvino") is not None:
        config = BenchConfig(device=sshd[1], runtime="openvino", **QUICK)
        other = read_measurement(bench(StageInputs(model=onnx), config, StageContext(tmp_path / "openvino")))
        assert other.runtime_version == version("openvino")


def test_a_device_that_cannot_be_reached_is_told(onnx, tmp_path):
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh: apt-get install openssh-client")
    config = BenchConfig(device="ssh://nobody@127.0.0.1:1", **QUICK)
    with pytest.raises(EnvironmentLacksError, match=r"ssh://nobody@127.0.0.1:1: cannot be reached .* without a passwo"):
        bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_without_ssh_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLacksError, match=r"'ssh' is not installed here\. Install it: apt-get install"):
        SshDevice("ssh://somewhere").__enter__()


@pytest.mark.parametrize(
    "name",
    [
        "ssh://",
        "ssh://host:port",
        "ssh://a:secret@host",
        "ssh://host/path",
        "ssh://-oProxyCommand=x",
        "ssh://-oX@host",
        "usb:1",
    ],
)
def test_a_name_that_is_no_device_is_refused(name, onnx, tmp_path):
    with pytest.raises(UsageError, match="device: found '"):
        bench(StageInputs(model=onnx), BenchConfig(device=name, **QUICK), StageContext(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ssh://MyBoard", ["MyBoard"]),
        ("ssh://Pi@MyBoard:2222", ["-p", "2222", "Pi@MyBoard"]),
        ("ssh://pi@[fe80::1]:22", ["-p", "22", "pi@fe80::1"]),
    ],
)
def test_ssh_is_given_the_name_as_it_is_spelled(name, words, monkeypatch):
    given = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: given.append(command) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SshDevice(name).__enter__()
    assert given[0][-1 - len(words) : -1] == words


@needs_sshd
def test_what_a_device_does_not_run_is_refused(sshd, tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    config = BenchConfig(device=sshd[1], **QUICK)
    with pytest.raises(UsageError, match="found the runtime 'torch', expected one that a device runs without all of"):
        bench(StageInputs(model=model), config, StageContext(tmp_path / "out"))
    writer = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    with pytest.raises(UsageError, match="is for classifiers so far; found a language model"):
        bench(StageInputs(model=writer), config, StageContext(tmp_path / "out"))


def test_the_worker_needs_no_more_than_its_files_and_the_standard_library(tmp_path):
    for file in WORKER_FILES:
        (tmp_path / "edgekit" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(edgekit.__file__).parent / file, tmp_path / "edgekit" / file)
    modules = ["edgekit.benchmarking.worker"]
    modules += [f"edgekit.runtimes.{name}_runtime" for name in ("litert", "onnxruntime", "openvino")]
    modules += ["edgekit.runtimes.silence"]  # imported when a file is opened
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {', '.join(modules)}\n"
        "from edgekit.benchmarking.worker import tell_facts\n"
        "print(tell_facts({'libraries': ['no_such_library']})['libraries'])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'no_such_library': None}", done.stderr
