"""Target files: the built-in ones, and what a wrong one says."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.benchmarking.budget import host_mismatch
from edgekit.benchmarking.machine import FEATURES
from edgekit.errors import TargetError
from edgekit.results import Machine
from edgekit.runtimes.generation import list_generation_runtimes
from edgekit.runtimes.protocol import list_runtimes
from edgekit.target import Target, list_targets, load_target, target_directory, target_schema
from tests.json_schema import problems

TEXT = (target_directory() / "raspberry-pi-5.toml").read_text(encoding="utf-8")


def written(tmp_path, text: str, name: str = "raspberry-pi-5") -> str:
    """Writes a target file and returns its path."""
    file = tmp_path / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", list_targets())
def test_built_in_targets_are_whole(name):
    target = load_target(name)
    assert target.name == name
    assert target.description
    # A peak per second is at least a billion; more than 10^13 on one core is a slip of the unit.
    for figure in (target.peak_int8_operations_per_s, target.peak_float32_operations_per_s):
        assert 1e9 < figure.value < 1e13
        assert len(figure.source) > 20
    assert target.peak_int8_operations_per_s.value >= target.peak_float32_operations_per_s.value
    assert 1e9 < target.memory_bandwidth_bytes_per_s.value < 1e12
    assert set(target.cpu_features) <= FEATURES
    assert {runtime.name for runtime in target.runtimes} <= {*list_runtimes(), *list_generation_runtimes()}
    assert None not in (target.budget.file_bytes, target.budget.p95_ms, target.budget.peak_memory_bytes)
    assert target.budget.peak_memory_bytes < target.memory_bytes


@pytest.mark.parametrize("name", list_targets())
def test_an_arm_server_counts_as_no_built_in_target(name):
    """A device, or a class of Arm devices, is known by what it calls itself: extensions alone say nothing of speed."""
    target = load_target(name)
    server = Machine(
        cpu="Neoverse-V2",
        architecture="aarch64",
        cores=64,
        memory_bytes=2**37,
        cpu_features=sorted(FEATURES),
        operating_system="Linux 6.1",
        python="3.11.2",
        device="Amazon EC2 c8g.16xlarge",
    )
    assert host_mismatch(target, server) is not None


@pytest.mark.parametrize(
    ("name", "cpu", "device"),
    [
        ("pixel-6", "Google Tensor", "Pixel 6"),
        ("galaxy-s23", "QTI SM8550", "SM-S911B"),
        ("android-mid-range", "QTI SM6375", "moto g84 5G"),
        ("android-2gb", "Mediatek MT6761V/WAB", "Redmi A1"),
        ("raspberry-pi-4", "Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 4 Model B Rev 1.4"),
        ("raspberry-pi-zero-2-w", "ARM part 0xd03", "Raspberry Pi Zero 2 W Rev 1.0"),
        ("jetson-orin-nano", "ARMv8 Processor rev 1 (v8l)", "NVIDIA Jetson Orin Nano Developer Kit"),
        ("laptop-apple-m", "Apple M1", "MacBookAir10,1"),
        ("laptop-snapdragon-x", "qcom,x1e80100 ARM part 0x001", "ThinkPad T14s Gen 6"),
    ],
)
def test_a_device_counts_by_the_name_that_it_gives(name, cpu, device):
    target = load_target(name)
    machine = Machine(
        cpu=cpu,
        architecture="aarch64",
        cores=4,
        memory_bytes=target.memory_bytes,
        cpu_features=target.cpu_features,
        operating_system="",
        python="",
        device=device,
    )
    assert host_mismatch(target, machine) is None
    other = machine.model_copy(update={"cpu": "Other", "device": "Pixel 6a"})
    assert "the machine is a Pixel 6a, not a" in host_mismatch(target, other)


def test_the_targets_cover_what_people_carry_and_build_on():
    names = list_targets()
    assert {"laptop-x86", "laptop-snapdragon-x", "laptop-apple-m", "browser", "browser-threads"} <= set(names)
    assert {"raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2-w", "jetson-orin-nano"} <= set(names)
    assert {"android-mid-range", "android-2gb", "ipad-10"} <= set(names)
    for family in ("pixel-", "galaxy-", "iphone-"):
        assert sum(name.startswith(family) for name in names) >= 3


@pytest.mark.parametrize("name", list_targets())
def test_a_source_says_what_multiplies_to_the_figure(name):
    """Each peak is a clock times what a cycle does; the clock that the source names gives the value."""
    target = load_target(name)
    for figure in (target.peak_int8_operations_per_s, target.peak_float32_operations_per_s):
        clock = float(re.search(r"([0-9.]+) GHz", figure.source)[1])
        per_cycle = figure.value / (clock * 1e9)
        assert per_cycle == pytest.approx(round(per_cycle / 8) * 8, rel=2e-3), figure.source


@pytest.mark.parametrize("name", list_targets())
def test_a_store_limits_what_comes_through_it(name):
    target = load_target(name)
    limits = {"android": 200_000_000, "ios": 4_000_000_000}
    assert target.bundle_bytes == limits.get(target.operating_system)


@pytest.mark.parametrize("system", [None, "linux"])
def test_a_phone_says_which_system_it_has(tmp_path, system):
    text = TEXT.replace('form_factor = "single-board"', 'form_factor = "tablet"')
    text = text.replace('operating_system = "linux"\n', f'operating_system = "{system}"\n' if system else "")
    with pytest.raises(TargetError, match=rf"found {str(system).lower()} for a tablet, expected android or ios"):
        load_target(written(tmp_path, text))


def test_the_browsers_onnxruntime_has_ceilings_too(tmp_path):
    text = TEXT.replace('name = "onnxruntime"', 'name = "onnxruntime-web"').replace("opset = 21\n", "")
    with pytest.raises(TargetError, match="found onnxruntime-web without opset"):
        load_target(written(tmp_path, text))


def test_the_published_schema_is_in_step():
    assert (Path(__file__).parents[1] / "docs" / "target.schema.json").read_text() == target_schema(), "run `make docs`"


@pytest.mark.parametrize("name", list_targets())
def test_the_schema_describes_every_built_in_file(name):
    schema = json.loads(target_schema())
    values = tomllib.loads((target_directory() / f"{name}.toml").read_text(encoding="utf-8"))
    assert list(problems(values, schema, schema)) == []
    assert list(problems({**values, "form_factor": "toaster"}, schema, schema))
    assert list(problems({**values, "colour": "red"}, schema, schema))
    assert list(problems({**values, "name": "Not A Name"}, schema, schema))
    assert list(problems({**values, "memory_bytes": 0}, schema, schema))


def test_the_schema_describes_every_key():
    schema = json.loads(target_schema())
    parts = [schema, *schema["$defs"].values()]
    undescribed = [key for part in parts for key, value in part["properties"].items() if "description" not in value]
    assert undescribed == []


def test_the_page_on_targets_names_every_key_and_target():
    page = (Path(__file__).parents[1] / "docs" / "add-a-target.md").read_text()
    assert [name for name in (*Target.model_fields, *list_targets()) if f"`{name}`" not in page] == []


def test_a_path_works_like_a_name(tmp_path):
    assert load_target(written(tmp_path, TEXT)) == load_target("raspberry-pi-5")


def test_a_typo_names_the_nearest_target():
    with pytest.raises(TargetError, match="Did you mean 'pixel-8'"):
        load_target("pixel8")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"none\.toml: cannot be read"):
        load_target(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_bytes = 4_294_967_296", "memory_bytes = 0", "memory_bytes"),
        ("memory_bytes = 4_294_967_296", 'memory_bytes = "4 GB"', "memory_bytes"),
        ("value = 17.1e9", "value = -1", "memory_bandwidth_bytes_per_s.value"),
        ('architecture = "aarch64"', 'architecture = "arm"', "architecture"),
        ("opset = 21", "opset = 99", "opset"),
        ("p95_ms = 60.0", "p95_ms = 0", "budget.p95_ms"),
        ("p95_ms = 60.0", "p95 = 60.0", "budget.p95: unknown key. Did you mean 'p95_ms'"),
        ('host_pattern = "Raspberry Pi 5"', 'host_pattern = "("', "expected a regular expression"),
        ('name = "raspberry-pi-5"', 'name = "raspberry-pi-4"', "found 'raspberry-pi-4', expected 'raspberry-pi-5'"),
        ('name = "onnxruntime"', "name = ", "is not valid TOML"),
    ],
)
def test_an_impossible_value_names_file_and_key(tmp_path, old, new, message):
    assert old in TEXT
    path = written(tmp_path, TEXT.replace(old, new))
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path):
    path = written(tmp_path, TEXT.replace("memory_bytes = 4_294_967_296", "memory_bytes = 0").replace("= 21", "= 99"))
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_runtime_that_is_not_shipped_is_refused():
    target = load_target("pixel-8")
    assert target.runtime("onnxruntime").opset >= 17
    with pytest.raises(TargetError, match="does not ship the runtime 'torch'; it ships: onnxruntime"):
        target.runtime("torch")


@given(st.floats(max_value=0, allow_nan=False))
def test_no_figure_is_zero_or_less(value):
    values = tomllib.loads(TEXT)
    values["memory_bandwidth_bytes_per_s"]["value"] = value
    with pytest.raises(ValueError, match="greater than 0"):
        Target.model_validate(values)
