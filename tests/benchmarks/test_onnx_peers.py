"""What optimum-onnx makes of a student, in its own environment, opened here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matrix_rows import FloatReference, LeftOut, RowMaker
from onnx_peers import TOOLS, Tool, make_peer_files

from edgekit.cache import Cache
from edgekit.events import ignore
from tests.peers.opening import PEERS, needs_peers
from tests.pico import pico_data_artifact, pico_model_artifact

(OPTIMUM,) = (tool for tool in TOOLS if tool.name == "optimum-onnx")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return pico_model_artifact(tmp_path_factory.mktemp("student"), layers=2)


@pytest.mark.runtime
@needs_peers
def test_optimums_files_are_rows_and_the_float_ones_are_the_student(student, tmp_path):
    pythons = {OPTIMUM.name: PEERS / "optimum" / "bin" / "python"}
    made = make_peer_files(student, tmp_path, pythons, [OPTIMUM])
    assert made.versions[OPTIMUM.name]["optimum-onnx"] == "0.1.0"
    maker = RowMaker(FloatReference(student, pico_data_artifact(tmp_path)), Cache(tmp_path, 0, ignore), LeftOut())
    rows = {row.made_by: row for row in maker.peer_rows(made.files)}
    assert {"optimum-onnx, float32", "optimum-onnx, float32-O2", "optimum-onnx, int8"} <= set(rows)
    assert rows["optimum-onnx, float32"].from_float.max_abs_diff < 1e-4
    assert rows["optimum-onnx, float32-O2"].from_float.max_abs_diff < 1e-3
    assert rows["optimum-onnx, int8"].from_float.max_abs_diff > 1e-4, "nothing was rounded"
    assert len(made.files) + len(made.refused) == 5


def test_a_tool_that_cannot_run_is_left_out_with_its_last_words(student, tmp_path):
    broken = Tool("broken", "README.md", Path(__file__), "broken-venv")
    made = make_peer_files(student, tmp_path, {"broken": Path(sys.executable)}, [broken])
    assert made.files == []
    assert "SyntaxError" in made.refused["broken"]


def test_a_tool_that_cannot_be_installed_is_left_out_with_its_last_words(student, tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("./no-such-directory\n")
    made = make_peer_files(student, tmp_path, {}, [Tool("broken", "optimum_peer.py", requirements, "broken-venv")])
    assert "no-such-directory" in made.refused["broken"]
