"""An emulated ARM64 processor, prepared by apt and pip as a user does: its kernels compute what torch does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.cli import run
from edgekit.emulation import preparation
from edgekit.emulation.device import PROGRAMS, WHEELS, open_emulated
from edgekit.emulation.preparation import prepare_device
from edgekit.emulation.processors import get_processor
from edgekit.errors import EnvironmentLacksError, MeasurementError, ModelError, UsageError
from edgekit.exporters.parity import read_parity
from edgekit.runtimes.protocol import SessionConfig, get_runtime
from tests.exporters.test_parity import alter_weights, altered
from tests.pico import pico_data_artifact, pico_model_artifact
from tests.runtimes.tiny import tiny_onnx_artifact

DEVICE = "qemu:cortex-a76"
MISSING = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
if not any(map(shutil.which, PROGRAMS)):
    MISSING.append("qemu-aarch64-static (apt-get install qemu-user-static)")

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
]

SCHEMES = {
    "float32": None,
    "int8": {"bits": 8},
    "4 bits, float activations": {"bits": 4, "group_size": 32, "activations": "float"},
    "4 bits": {"bits": 4, "group_size": 32},
    "3 bits": {"bits": 3, "group_size": 32},
    "4 bits with zero points": {"bits": 4, "group_size": 32, "symmetric": False},
    "4 bits, groups of 16": {"bits": 4, "group_size": 16},
}
ROWS_ARE_ROUNDED = {"4 bits", "3 bits"}
"""Where onnxruntime's kernel for ARM64 rounds activations and scales otherwise than on x86."""


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """Prepares the device in a cache of its own, and yields the steps that were told."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            prepare_device(DEVICE, events=told.append)
        except EnvironmentLacksError as error:  # packages that cannot be had are no mistake of the code
            pytest.skip(f"the device cannot be prepared: {error}")
        yield told


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def data(place):
    return pico_data_artifact(place / "data")


@pytest.fixture(scope="module")
def model(place):
    return pico_model_artifact(place, layers=2)


@pytest.fixture(scope="module")
def exported(place, model):
    return edgekit.export(model, out=place / "exported")


def check(out, export, reference, data, **settings):
    config = edgekit.CheckConfig(rows=24, batch_sizes=[1, 4], device=DEVICE, **settings)
    return read_parity(edgekit.check(export, config, reference=reference, data=data, out=out))


def test_a_preparation_is_whole_and_a_second_one_downloads_nothing(prepared):
    assert [event.completed for event in prepared] == [0, 1, 2, 3, 4, 5]
    told = []
    device = prepare_device(DEVICE, offline=True, events=told.append)
    assert told == []
    assert {file.name for file in device.place.iterdir()} == {"root", "packages", "prepared.json"}
    assert {file.name for file in device.place.parent.iterdir()} == {"cortex-a76", ".cortex-a76.lock"}
    record = json.loads((device.place / "prepared.json").read_text())
    assert record["wheels"] == WHEELS
    assert any(name.startswith("libc6_") and name.endswith("_arm64") for name in record["system"])


def test_the_device_is_what_its_processor_is():
    found = open_emulated(DEVICE).describe()
    assert (found.device, found.architecture) == (DEVICE, "aarch64")
    assert found.cpu == "Arm Cortex-A76 (ARM part 0xd0b)"
    assert found.cpu_features == ["asimd", "asimddp", "asimdhp"]
    assert found.emulator.startswith("qemu-aarch64 ")


@pytest.mark.parametrize("name", SCHEMES)
def test_the_kernels_compute_what_torch_does_with_the_same_codes(name, place, model, exported, data, tmp_path):
    scheme = SCHEMES[name]
    student, made = model, exported
    if scheme is not None:
        student = edgekit.quantize(model, edgekit.QuantizeConfig(**scheme), out=tmp_path / "student")
        made = edgekit.export(student, out=tmp_path / "export")
    parity = check(tmp_path / "parity", made, student, data)
    assert parity.passed, parity.failures
    assert parity.runtime == f"onnxruntime {WHEELS['onnxruntime']}"
    assert parity.emulation is not None
    assert parity.emulation.device == DEVICE
    if name in ROWS_ARE_ROUNDED:
        assert parity.share_above_own == 0
        assert parity.max_abs_diff == pytest.approx(parity.own_max_abs_diff, abs=1e-5), "torch so rounded is the same"
        assert parity.max_abs_diff > 1e-3
    elif "groups of 16" in name or "float" in name:
        assert parity.max_abs_diff < 1e-5


def test_another_file_fails_there_too(exported, model, data, tmp_path):
    wrong = altered(exported, tmp_path / "wrong", lambda directory: alter_weights(directory, 1.5))
    parity = check(tmp_path / "parity", wrong, model, data)
    assert not parity.passed
    assert any(failure.startswith("max_abs_diff") for failure in parity.failures)


@pytest.mark.parametrize("scheme", [None, {"bits": 8}])
def test_litert_runs_there_too(scheme, model, data, tmp_path):
    pytest.importorskip("litert_torch")
    student = model
    if scheme is not None:
        student = edgekit.quantize(model, edgekit.QuantizeConfig(**scheme), out=tmp_path / "student")
    config = edgekit.ExportConfig(format="litert", lengths=[16, 32])
    parity = check(tmp_path / "parity", edgekit.export(student, config, out=tmp_path / "litert"), student, data)
    assert parity.passed, parity.failures
    assert parity.runtime == f"litert {WHEELS['ai-edge-litert']}"


def test_the_commands_prepare_and_check_and_say_on_what(exported, model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["prepare-device", DEVICE, "--offline"]) == 0
    assert "Arm Cortex-A76 (ARM part 0xd0b), aarch64 with asimd, asimddp, asimdhp; qemu-aarch64 " in (
        capsys.readouterr().out
    )
    words = ["check", str(exported.path), str(tmp_path / "parity"), "--reference", str(model.path)]
    assert run([*words, "--data", str(data.path), "--device", DEVICE, "--rows", "4"]) == 0
    shown = capsys.readouterr().out
    assert f"Parity under onnxruntime {WHEELS['onnxruntime']}" in shown
    assert f"{DEVICE}, emulated by qemu-aarch64 " in shown
    assert "passed" in shown


def test_a_broken_file_is_told_by_the_runtime_there(tmp_path):
    broken = tiny_onnx_artifact(tmp_path / "onnx")
    (broken.path / "onnx" / "model.onnx").write_bytes(b"no model")
    runtime = open_emulated(DEVICE).runtime(get_runtime("onnxruntime"))
    with pytest.raises(ModelError, match=f"onnxruntime {WHEELS['onnxruntime']} cannot open it"):
        runtime.open(broken, SessionConfig())


def test_a_session_ends_with_its_process_and_the_process_with_its_session(tmp_path):
    onnx = tiny_onnx_artifact(tmp_path / "onnx")
    runtime = open_emulated(DEVICE).runtime(get_runtime("onnxruntime"))
    ids = np.ones((1, 4), dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": ids}
    first, second = runtime.open(onnx, SessionConfig()), runtime.open(onnx, SessionConfig())
    process = first._program.process
    assert first.run(inputs)["logits"].shape == (1, 2)
    del first
    assert process.poll() is not None
    second._program.process.kill()
    second._program.process.wait()
    with pytest.raises(MeasurementError, match="ended during 'run'"):
        second.run(inputs)


def test_what_the_device_was_not_prepared_with_is_refused(exported, model, data, tmp_path):
    with pytest.raises(UsageError, match="found the runtime 'openvino', expected onnxruntime or litert"):
        check(tmp_path / "parity", exported, model, data, runtime="openvino")


def test_a_place_whose_worker_does_not_start_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "edgekit" / "devices" / "cortex-a76"
    place.mkdir(parents=True)
    record = {"device": DEVICE, "python": "python3.11", "wheels": WHEELS, "system": []}
    (place / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(EnvironmentLacksError, match=r"a worker does not start under .*/qemu-aarch64.* Prepare the"):
        open_emulated(DEVICE).describe()


def test_a_package_that_is_not_to_be_had_is_told_and_downloads_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(preparation, "SYSTEM", ("no-such-package-of-edgekit",))
    with pytest.raises(EnvironmentLacksError, match=r"apt-get failed: E: Unable to locate package no-such-package-of-"):
        prepare_device(DEVICE)
    devices = tmp_path / "edgekit" / "devices"
    assert list((devices / ".cortex-a76.partial" / "apt" / "lists").glob("*_Packages*"))
    assert not (devices / "cortex-a76").exists()


def test_libraries_read_the_emulated_processor_and_not_this_machine(tmp_path):
    device = open_emulated(DEVICE)
    code = "print(open('/proc/cpuinfo').read() + open('/sys/devices/system/cpu/possible').read(), end='')"
    root = device.place / "root"
    emulator = [device.program, "-cpu", "cortex-a76", "-L", str(root), str(root / "usr/bin/python3"), "-S", "-c", code]
    done = subprocess.run(emulator, capture_output=True, text=True, check=True)
    files = get_processor(DEVICE).system_files
    assert done.stdout == files["proc/cpuinfo"] + files["sys/devices/system/cpu/possible"]
    assert Path("/proc/cpuinfo").read_text() != files["proc/cpuinfo"]
