"""Target files: the built-in ones, and what a wrong one says."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.benchmarking.machine import FEATURES
from edgekit.errors import TargetError
from edgekit.runtimes.generation import list_generation_runtimes
from edgekit.runtimes.protocol import list_runtimes
from edgekit.target import Target, list_targets, load_target, target_directory

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
def test_one_device_is_known_by_its_name_and_a_class_is_not(name):
    target = load_target(name)
    assert (target.host_pattern is None) is (target.form_factor in ("laptop", "desktop", "server", "browser"))


def test_the_demo_targets_are_there():
    assert {"laptop-x86", "pixel-8", "raspberry-pi-5"} <= set(list_targets())


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
