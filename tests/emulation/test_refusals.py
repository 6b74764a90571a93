"""What is refused of emulated devices, and what is told where the emulator, apt or a preparation is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import edgekit
from edgekit.benchmarking.machine import cpu_features
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.emulation.device import WHEELS, open_emulated
from edgekit.emulation.preparation import prepare_device
from edgekit.emulation.processors import get_processor
from edgekit.errors import EnvironmentLacksError, UsageError
from tests.pico import pico_data_artifact, publish_model
from tests.pico_decoders import pico_decoder
from tests.runtimes.tiny import tiny_onnx_artifact

DEVICE = "qemu:cortex-a76"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Returns the only directory that programs are looked for in, and makes the cache an empty one."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place


def install(programs, *names):
    for name in names:
        (programs / name).write_text("")
        (programs / name).chmod(0o755)


def test_speed_and_memory_of_an_emulated_device_are_refused_with_the_reason(tmp_path, capsys):
    refusal = r"an emulated instruction takes this machine's time .* edgekit check EXPORT OUT .* --device qemu:cortex-a"
    models = tiny_onnx_artifact(tmp_path / "onnx"), publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    for model in models:
        with pytest.raises(UsageError, match=refusal):
            bench(StageInputs(model=model), BenchConfig(device=DEVICE), StageContext(tmp_path / "out"))
    assert run(["bench", str(models[0].path), "--device", DEVICE]) == 2
    assert re.search(refusal, capsys.readouterr().err)


def test_a_device_that_nobody_knows_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"found 'qemu:cortex-a67'.* Did you mean 'qemu:cortex-a76'\?"):
        open_emulated("qemu:cortex-a67")
    assert run(["prepare-device", "qemu:max"]) == 2


def test_without_the_emulator_its_package_is_named(programs):
    for attempt in (open_emulated, prepare_device):
        with pytest.raises(EnvironmentLacksError, match=r"apt-get install qemu-user-static$"):
            attempt(DEVICE)


def test_what_is_not_prepared_names_the_command_and_downloads_nothing_by_itself(programs, tmp_path):
    install(programs, "qemu-aarch64-static")
    with pytest.raises(EnvironmentLacksError, match=f"is not prepared.*: edgekit prepare-device {DEVICE}$"):
        open_emulated(DEVICE)
    with pytest.raises(EnvironmentLacksError, match="--offline forbids the downloads"):
        prepare_device(DEVICE, offline=True)
    assert not (tmp_path / "cache" / "edgekit" / "devices" / "cortex-a76").exists()


def test_a_system_without_apt_is_told(programs):
    install(programs, "qemu-aarch64")
    with pytest.raises(EnvironmentLacksError, match=r"found no program 'apt-get', expected Debian or a system made"):
        prepare_device(DEVICE)


def test_a_preparation_of_other_versions_is_not_used(programs, tmp_path):
    install(programs, "qemu-aarch64-static")
    place = tmp_path / "cache" / "edgekit" / "devices" / "cortex-a76"
    place.mkdir(parents=True)
    record = {"device": DEVICE, "python": "python3.11", "wheels": {"onnxruntime": "1.0"}, "system": []}
    (place / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(EnvironmentLacksError, match=r"prepared with onnxruntime 1\.0, expected numpy .* Prepare it"):
        open_emulated(DEVICE)


def test_a_language_model_is_refused(tmp_path):
    writer = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(device=DEVICE)
    with pytest.raises(UsageError, match=f"device {DEVICE} is for classifiers so far; found a language model"):
        edgekit.check(
            edgekit.export(writer, out=tmp_path / "onnx"), config, reference=writer, data=data, out=tmp_path / "parity"
        )


def test_the_wheels_are_those_of_the_constraints():
    text = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    assert {f"{name}=={version}" for name, version in WHEELS.items()} <= set(text.split())


def test_what_libraries_read_is_four_cortex_a76():
    cpuinfo = get_processor(DEVICE).system_files["proc/cpuinfo"]
    assert cpu_features(cpuinfo) == ["asimd", "asimddp", "asimdhp"]
    assert re.findall(r"^processor\t: (\d)$", cpuinfo, flags=re.MULTILINE) == ["0", "1", "2", "3"]
    for line in ("CPU implementer\t: 0x41", "CPU part\t: 0xd0b", "CPU variant\t: 0x4", "CPU revision\t: 1"):
        assert cpuinfo.splitlines().count(line) == 4
