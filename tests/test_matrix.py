"""Every format and runtime of one model, in one run, one table and one page."""

from __future__ import annotations

import json
import shutil

import pytest

import edgekit
from edgekit.benchmarking.series import Sampling
from edgekit.cli import run
from edgekit.errors import UsageError
from edgekit.events import ignore
from edgekit.matrix import MatrixPlan, build_matrix
from edgekit.quantization.stage import QuantizeConfig
from edgekit.reporting.html import render_matrix
from edgekit.reporting.matrix import rows
from tests.pico import pico_data_artifact, pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder

SAMPLING = Sampling(pairs=5, min_samples=2, min_seconds=0.01, max_seconds=0.05, max_warmup_s=0.05)


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    return pico_model_artifact(tmp_path_factory.mktemp("float"), name="student")


@pytest.fixture(scope="module")
def coded_model(float_model, tmp_path_factory):
    return edgekit.quantize(
        float_model, QuantizeConfig(bits=4, group_size=16), out=tmp_path_factory.mktemp("c") / "int4"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pico_data_artifact(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def found(float_model, coded_model, data, tmp_path_factory):
    plan = MatrixPlan(
        out=tmp_path_factory.mktemp("matrix"),
        formats=("onnx", "litert"),
        runtimes=("onnxruntime", "litert"),
        length=8,
        sampling=SAMPLING,
    )
    return build_matrix([float_model, coded_model], data, plan, ignore)


def test_every_file_is_checked_judged_and_measured_in_each_runtime(found):
    cells = [(row.model, row.format, row.measurement.runtime) for row in found.rows]
    assert cells == [
        ("student", "onnx", "onnxruntime"),
        ("student", "onnx, standard", "onnxruntime"),
        ("student", "litert", "litert"),
        ("int4", "onnx", "onnxruntime"),
    ]
    for row in found.rows:
        assert row.quality is not None
        assert row.parity is not None
        assert row.parity.passed
    assert found.rows[0].ratio is None
    assert all(row.ratio is not None for row in found.rows[1:])


def test_what_a_format_cannot_hold_is_left_out_with_its_reason(found):
    assert {(each.model, each.format) for each in found.left_out if each.runtime == ""} >= {("int4", "litert")}
    refused = [each for each in found.left_out if (each.model, each.format) == ("int4", "litert")]
    assert len(refused) == 1
    assert "litert" in refused[0].reason


def test_the_page_shows_rows_fronts_and_reasons(found):
    page = render_matrix(found)
    assert page.count('<tr><th scope="row">') == len(found.rows) == len(rows(found))
    assert "size-front" in page
    assert "latency-front" in page
    assert "Left out" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_command_goes_on_where_it_stopped(float_model, data, tmp_path, capsys):
    out = tmp_path / "matrix"
    words = ["matrix", str(float_model.path), "--data", str(data.path), "--out", str(out), "--formats", "onnx"]
    words += ["--runtimes", "onnxruntime", "--length", "8", "--min-seconds", "0.01", "--threads", "1"]
    assert run([*words, "--max-rows", "8"]) == 0
    printed = capsys.readouterr()
    assert "onnx, standard" in printed.out.replace("\n", " ")
    saved = json.loads((out / "matrix.json").read_text())
    assert [row["format"] for row in saved["rows"]] == ["onnx", "onnx, standard"]
    assert (out / "matrix.html").is_file()
    made = {path.name: path.stat().st_mtime_ns for path in (out / "artifacts").iterdir()}
    shutil.rmtree(next(path for path in (out / "artifacts").glob("export-*") if path.is_dir()))
    assert run([*words, "--max-rows", "8", "--json"]) == 0
    again = {path.name: path.stat().st_mtime_ns for path in (out / "artifacts").iterdir()}
    assert set(again) == set(made)
    assert sum(again[name] != made[name] for name in made) <= 2, "only what was gone is made again"


def test_bad_input_is_told_at_once(float_model, tmp_path):
    decoder = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    plan = MatrixPlan(out=tmp_path / "out", sampling=SAMPLING)
    with pytest.raises(UsageError, match="found a model for the task 'causal-lm', expected text-classification"):
        build_matrix([decoder], None, plan, ignore)
    assert run(["matrix", str(float_model.path), "--formats", "onx"]) == 2
    for wrong in (["--runtimes", "onxruntime"], ["--threads", "0"], ["--threads", "999"], ["--length", "0"]):
        out = tmp_path / "wrong"
        assert run(["matrix", str(float_model.path), "--out", str(out), *wrong]) == 2
        assert not list(out.glob("artifacts/*")), "nothing was written before"
    assert run(["matrix", str(float_model.path), "--pairs", "3"]) == 2
