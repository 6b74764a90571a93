"""`edgekit compare` and `edgekit bench --baseline`: what a user sees, and the exit codes."""

from __future__ import annotations

import json

import pytest

from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.cli import run
from edgekit.reporting import wording
from tests.benchmarking.examples import LAPTOP, measurement, steady
from tests.runtimes.tiny import tiny_onnx_artifact

QUICK = ["--min-samples", "30", "--min-seconds", "0.05", "--length", "8"]


@pytest.fixture
def saved(tmp_path):
    """Returns a function that writes a measurement and returns its path."""

    def write(name: str, p50_ms: float, **changes: object) -> str:
        path = tmp_path / name
        path.write_text(measurement(steady(p50_ms), **changes).model_dump_json(), encoding="utf-8")
        return str(path)

    return write


def test_worse_is_exit_code_1_and_better_0(saved, capsys):
    old, new = saved("old.json", 10.0), saved("new.json", 14.0)
    assert run(["compare", old, new]) == 1
    shown = capsys.readouterr().out
    assert "worse" in shown
    for p50_ms in (10.0, 14.0):
        assert wording.milliseconds(measurement(steady(p50_ms)).p50_ms) in shown
    assert run(["compare", new, old]) == 0
    assert run(["compare", old, old]) == 0
    assert run(["compare", old, new, "--margin", "0.6"]) == 0


def test_markdown_for_a_pull_request(saved, tmp_path):
    page = tmp_path / "page.md"
    run(["compare", saved("old.json", 10.0), saved("new.json", 14.0, threads=2), "--markdown", str(page)])
    text = page.read_text(encoding="utf-8")
    title, *lines = text.splitlines()
    assert title.startswith("## \N{CROSS MARK} ")
    (row,) = (line for line in lines if line.startswith("| p50 latency |"))
    assert "| 1.40\N{MULTIPLICATION SIGN} |" in row
    assert "**worse (margin 10.0 %)**" in text
    assert "| threads | 1 | 2 |" in text
    assert "measured apart" in text


def test_json_is_one_line_with_every_figure(saved, capsys):
    run(["compare", saved("old.json", 10.0), saved("new.json", 14.0), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["kind"] == "changes"
    assert [figure["verdict"] for figure in found["figures"]] == ["worse", None, "no difference", "no difference"]


def test_another_machine_is_refused_in_one_line_unless_asked(saved, capsys):
    old = saved("old.json", 10.0)
    new = saved("new.json", 10.0, machine=LAPTOP.model_copy(update={"cpu": "Another"}))
    assert run(["compare", old, new]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another machine: found cpu 'Some Laptop CPU' and 'Another'" in line
    assert "--anyway" in line
    assert run(["compare", old, new, "--anyway"]) == 0
    assert "Compared all the same: another machine" in " ".join(capsys.readouterr().out.split())


def test_a_baseline_of_another_machine_is_refused_before_anything_is_measured(saved, capsys):
    # the model does not even exist
    assert run(["bench", "nowhere", "--baseline", saved("old.json", 10.0)]) == 2
    assert "another machine" in capsys.readouterr().err


def test_bench_against_a_baseline(saved, tmp_path, capsys):
    onnx = tiny_onnx_artifact(tmp_path / "onnx")
    here = {"machine": machine_fingerprint(), "batch": 1, "length": 8, "model_bytes": 1}
    page = tmp_path / "page.md"
    # the file of the baseline is one byte: whatever the speed, this model's is larger
    words = ["bench", str(onnx.path), *QUICK, "--baseline", saved("old.json", 1e6, **here), "--markdown", str(page)]
    assert run(words) == 1
    assert "worse" in capsys.readouterr().out
    assert "p50 latency" in page.read_text(encoding="utf-8")
    other = saved("other.json", 1e6, **{**here, "length": 16})
    assert run(["bench", str(onnx.path), *QUICK, "--baseline", other]) == 2
    assert "another scenario: found length 16 and 8" in capsys.readouterr().err
    huge = {**here, "model_bytes": 10**12, "peak_rss_bytes": 10**12}
    assert run(["bench", str(onnx.path), *QUICK, "--baseline", saved("huge.json", 1e6, **huge)]) == 0
