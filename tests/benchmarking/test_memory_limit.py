"""The smallest memory that a model runs in: the halving on limits made up, and on real processes."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarking.memory import parse_status
from edgekit.benchmarking.memory_limit import MIB, find_smallest_limit, require_limits
from edgekit.benchmarking.result_files import read_measurement
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import EnvironmentLacksError, MeasurementError, MemoryLimitError
from edgekit.events import ignore
from tests.runtimes.tiny import tiny_onnx_artifact

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
QUICK = {"min_samples": 30, "min_seconds": 0.02, "length": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


def needs(needed_bytes: int):
    def attempt(limit_bytes: int) -> None:
        if limit_bytes < needed_bytes:
            raise MemoryLimitError("memory_limit: too small") from MeasurementError("bad allocation\nand more")

    return attempt


@given(st.integers(1, 4000 * MIB), st.integers(8 * MIB, 1000 * MIB))
@settings(max_examples=60, deadline=None)
def test_halving_finds_what_is_needed_to_the_resolution(needed, start):
    found = find_smallest_limit(needs(needed), start, ignore)
    assert needed <= found.smallest_bytes <= needed + found.resolution_bytes
    assert found.resolution_bytes == max(round(start / 100), MIB)
    assert len(found.trials) < 25


def test_every_process_has_its_outcome():
    found = find_smallest_limit(needs(5 * MIB), 8 * MIB, ignore)
    assert [(trial.limit_bytes // MIB, trial.runs) for trial in found.trials] == [
        (8, True),
        (4, False),
        (6, True),
        (5, True),
    ]
    assert {trial.outcome for trial in found.trials} == {"runs", "bad allocation and more"}
    assert found.smallest_bytes == 5 * MIB


def test_a_model_that_runs_under_no_limit_at_all_is_an_error():
    with pytest.raises(MeasurementError, match=r"no limit up to 512 MiB(.|\n)*bad allocation and more"):
        find_smallest_limit(needs(10**15), MIB, ignore)


def test_a_system_without_the_limit_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EnvironmentLacksError, match="found the system 'darwin', expected Linux"):
        require_limits()


def test_shared_memory_is_read_from_the_status():
    text = "VmHWM:\t 100 kB\nVmRSS:\t 90 kB\nRssAnon:\t 50 kB\nRssFile:\t 30 kB\nRssShmem:\t 10 kB\n"
    found = parse_status(text)
    assert (found.anonymous_bytes, found.file_bytes, found.shared_bytes) == (50 * 1024, 30 * 1024, 10 * 1024)


@LINUX
def test_the_peak_is_told_apart_by_what_backs_it(tiny, tmp_path):
    found = read_measurement(bench(StageInputs(model=tiny), BenchConfig(**QUICK), StageContext(tmp_path / "m")))
    split = found.peak_split
    assert split.anonymous_bytes > 0
    assert split.file_bytes > 0
    together = split.anonymous_bytes + split.file_bytes + split.shared_bytes
    assert 0.9 * found.peak_rss_bytes <= together <= 1.01 * found.peak_rss_bytes


@LINUX
def test_a_model_runs_in_its_smallest_memory_and_not_in_half_of_it(tiny, tmp_path):
    config = BenchConfig(memory_limit_mib="smallest", **QUICK)
    found = read_measurement(bench(StageInputs(model=tiny), config, StageContext(tmp_path / "m")))
    assert found.memory_limit_bytes is None
    smallest = found.smallest_memory
    assert any(not trial.runs for trial in smallest.trials)
    assert all(trial.outcome for trial in smallest.trials)
    enough = -(-smallest.smallest_bytes // MIB) + 4  # addresses are drawn anew in every process
    config = BenchConfig(memory_limit_mib=enough, **QUICK)
    capped = read_measurement(bench(StageInputs(model=tiny), config, StageContext(tmp_path / "capped")))
    assert capped.memory_limit_bytes == enough * MIB
    half = BenchConfig(memory_limit_mib=max(1, enough // 2), **QUICK)
    with pytest.raises(MemoryLimitError, match=f"found a limit of {half.memory_limit_mib} MiB(.|\n)*--memory-limit"):
        bench(StageInputs(model=tiny), half, StageContext(tmp_path / "half"))
    assert not (tmp_path / "half").exists()


@LINUX
def test_a_limit_that_is_too_small_is_one_error_and_exit_code_1(tiny, capsys):
    assert run(["bench", str(tiny.path), "--length", "8", "--memory-limit", "1"]) == 1
    captured = capsys.readouterr()
    assert "\nedgekit: memory_limit: found a limit of 1 MiB, under which this does not run" in captured.err
    assert captured.out == ""
