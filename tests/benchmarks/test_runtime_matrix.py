"""The runtime matrix on a student of a few kilobytes: its rows, a measurement in turn, and its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matrix_rows import Agreement, FloatReference, LeftOut, RowMaker
from matrix_table import fastest, runtime_matrix_table
from runtime_matrix import QUICK, describe, measure

from edgekit.cache import Cache
from edgekit.errors import ModelError
from edgekit.events import ignore
from tests.benchmarking import fakes
from tests.pico import pico_data_artifact, pico_model_artifact


@pytest.fixture(scope="module")
def left_out():
    return LeftOut()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, left_out):
    directory = tmp_path_factory.mktemp("matrix")
    student = pico_model_artifact(directory, layers=2, max_length=64)
    reference = FloatReference(student, pico_data_artifact(directory))
    return RowMaker(reference, Cache(directory, 0, ignore), left_out).own_rows({"float32": student})


def test_edgekits_file_in_onnxruntime_comes_first_and_torch_last(rows):
    assert rows[0].is_base
    assert [row.is_base for row in rows].count(True) == 1
    assert (rows[-1].written, rows[-1].from_model) == ("torch", None)
    assert rows[-1].from_float == Agreement(0.0, 1.0)
    assert all(row.from_float.max_abs_diff < 1e-3 for row in rows)


def test_every_format_that_holds_classifiers_is_a_row_or_left_out_with_a_reason(rows, left_out):
    for written in ("onnx", "ort", "openvino", "litert", "onnx, standard operators"):
        reasons = [reason for name, reason in left_out.reasons.items() if written in name.split(", ", 2)[-1]]
        assert any(row.written == written for row in rows) or any(reasons), written
    assert not any("gguf" in name for name in left_out.reasons)


def test_a_runtime_that_refuses_is_left_out_and_the_others_are_measured(rows):
    left_out = LeftOut(hidden=[rows[0].artifact.path])
    refusing = replace(rows[0], made_by="another", runtime=fakes.Refusing())
    group = measure([rows[0], refusing, rows[-1]], 1, QUICK, left_out)
    assert group.rows == [rows[0], rows[-1]]
    ((name, reason),) = left_out.reasons.items()
    assert "another" in name
    assert "this file is not for me" in reason
    described = describe(group)
    assert [row["ratio"] is None for row in described] == [True, False]
    assert described[1]["ratio"] == described[1]["ratio_to_first"]
    peers = {"files": {"Olive, int8": "olive auto-opt"}}
    table = runtime_matrix_table({"rows": described, "left_out": left_out.reasons, "peers": peers})
    assert "edgekit, torch, torch" in table
    assert f"- {name}: {reason}" in table
    assert "- Olive, int8: `olive auto-opt`" in table


def test_nothing_is_measured_without_what_the_others_are_compared_with(rows):
    with pytest.raises(ModelError, match="not for me"):
        measure([replace(rows[0], runtime=_RefusingOnnxRuntime()), rows[-1]], 1, QUICK, LeftOut())


class _RefusingOnnxRuntime(fakes.Refusing):
    name = "onnxruntime"


def test_reasons_name_no_directory_of_this_machine():
    left_out = LeftOut(hidden=[Path("somewhere/deep")])
    left_out.add("row", "somewhere/deep/model.onnx: cannot be opened.")
    assert left_out.reasons == {"row": "model.onnx: cannot be opened."}


def _figures(made_by: str, ratio: float | None, interval: list[float] | None, runtime: str = "onnxruntime"):
    figures = {"made_by": made_by, "ratio": ratio, "ratio_interval": interval, "runtime": runtime}
    return {"precision": "int8", "threads": 1, "from_float": {"label_agreement": 0.99}, **figures}


@pytest.mark.parametrize(
    ("interval", "told"),
    [([1.1, 1.3], "edgekit's;"), ([0.8, 0.9], "Olive;"), ([0.9, 1.1], "not told apart, edgekit's;")],
)
def test_the_fastest_is_told_where_the_interval_tells_it(interval, told):
    rows = [
        _figures("edgekit", None, None),
        _figures("slower", 3.0, [2.9, 3.1]),
        _figures("Olive", 1.0, interval),
        _figures("edgekit", 0.1, [0.1, 0.1]),
        _figures("elsewhere", 0.1, [0.1, 0.1], runtime="litert"),
    ]
    (line,) = fastest(rows)
    assert line.startswith(f"int8, 1 thread(s): {told}")
    assert "Olive takes 1.00 times" in line
    assert line.endswith("99.0% of float32's labels")
