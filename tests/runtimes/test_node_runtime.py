"""onnxruntime in Node.js, native and as WebAssembly: Python's logits, and measured in their own process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.benchmarking.result_files import read_measurement, read_sweep
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import EnvironmentLacksError, MemoryLimitError, ModelError
from edgekit.exporters.parity import read_parity
from edgekit.runtimes.node_runtime import OnnxRuntimeNode, OnnxRuntimeWebNode, TransformersJs
from edgekit.runtimes.npm_packages import LOCATION_VARIABLE, find_package
from edgekit.runtimes.protocol import SessionConfig, get_runtime
from tests.pico import pico_data_artifact, pico_model_artifact, pico_tokenizer
from tests.runtimes.tiny import expected_logits, tiny_onnx_artifact

PEERS = Path(__file__).parents[2] / ".peers" / "node_modules"
QUICK = {"min_samples": 5, "min_seconds": 0.05, "length": 8, "pairs": 5}
RUNTIMES = [OnnxRuntimeNode, OnnxRuntimeWebNode]

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (PEERS / "onnxruntime-node").is_dir(), reason="needs Node.js and `make peers`"
)


@pytest.fixture(autouse=True)
def _modules(monkeypatch):
    monkeypatch.setenv(LOCATION_VARIABLE, str(PEERS))


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("onnx") / "onnx")


@needs_node
@pytest.mark.parametrize("kind", [*RUNTIMES, TransformersJs])
@pytest.mark.parametrize("scheme", [{"bits": 8}, {"bits": 4, "group_size": 32, "activations": "float"}])
def test_logits_are_those_of_python(kind, scheme, tmp_path):
    student = edgekit.quantize(
        pico_model_artifact(tmp_path / "model", layers=1), edgekit.QuantizeConfig(**scheme), out=tmp_path / "student"
    )
    made = edgekit.export(student, out=tmp_path / "onnx")
    here, there = (runtime.open(made, SessionConfig()) for runtime in (get_runtime("onnxruntime"), kind()))
    assert (there.input_names, there.output_names) == (here.input_names, here.output_names)
    for rows, length in ((1, 5), (3, 11)):
        ids = np.random.default_rng(0).integers(5, 100, size=(rows, length))
        mask = np.tril(np.ones((rows, length), dtype=np.int64), k=8)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
        np.testing.assert_allclose(there.run(inputs)["logits"], here.run(inputs)["logits"], atol=2e-3)
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=16, runtime=kind.name)
    assert read_parity(edgekit.check(made, config, reference=student, data=data, out=tmp_path / "parity")).passed


@needs_node
def test_webassembly_does_not_round_activations_before_4_bits_and_the_check_says_so(tmp_path):
    scheme = edgekit.QuantizeConfig(bits=4, group_size=32)
    student = edgekit.quantize(pico_model_artifact(tmp_path / "model", layers=1), scheme, out=tmp_path / "student")
    made, data = edgekit.export(student, out=tmp_path / "onnx"), pico_data_artifact(tmp_path / "data")

    def passes(runtime):
        config = edgekit.CheckConfig(rows=16, runtime=runtime)
        return read_parity(edgekit.check(made, config, reference=student, data=data, out=tmp_path / runtime)).passed

    assert passes("onnxruntime-node")
    assert not passes("onnxruntime-web-node")


@needs_node
@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_wrong_file_is_told_and_the_process_ends_with_the_session(kind, onnx, tmp_path):
    session = kind().open(onnx, SessionConfig())
    process = session._program.process
    ids = np.ones((1, 4), dtype=np.int64)
    logits = session.run({"input_ids": ids, "attention_mask": ids})["logits"]
    np.testing.assert_allclose(logits, expected_logits(ids, ids, len(pico_tokenizer("bert"))), atol=1e-5)
    del session
    assert process.poll() is not None
    broken = tiny_onnx_artifact(tmp_path / "onnx")
    (broken.path / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=f"{kind.package} cannot open it"):
        kind().open(broken, SessionConfig())


@needs_node
def test_transformers_js_is_measured_and_names_a_directory_that_it_cannot_open(onnx, tmp_path):
    made = edgekit.export(pico_model_artifact(tmp_path / "model", layers=1), out=tmp_path / "onnx")
    config = BenchConfig(runtime="transformers.js", **QUICK)
    found = read_measurement(bench(StageInputs(model=made), config, StageContext(tmp_path / "out")))
    assert found.runtime_version == TransformersJs().version()
    assert found.peak_rss_bytes > found.library_rss_bytes > found.baseline_rss_bytes > 0
    with pytest.raises(ModelError, match="transformers cannot open it"):  # its config.json names no architecture
        TransformersJs().open(onnx, SessionConfig())


@needs_node
def test_both_are_measured_in_their_own_process_in_turn_with_python(onnx, tmp_path):
    names = [kind.name for kind in RUNTIMES]
    config = BenchConfig(runtime="onnxruntime", sweep_runtimes=names, **QUICK)
    found = read_sweep(bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out")))
    assert [each.runtime for each in found.measurements] == ["onnxruntime", *names]
    for each, kind in zip(found.measurements[1:], RUNTIMES, strict=True):
        assert each.runtime_version == kind().version()
        assert each.p50_ms > 0
        assert each.load_ms > 0
        assert each.peak_rss_bytes > each.library_rss_bytes > each.baseline_rss_bytes > 0
        if hasattr(os, "sched_setaffinity"):
            assert len(each.pinned_cores) == 1
    assert len(os.sched_getaffinity(0)) >= len(found.measurements[0].pinned_cores), "this process is as it was"


@needs_node
def test_a_server_and_a_memory_limit_work_there_too(onnx, tmp_path):
    config = BenchConfig(runtime="onnxruntime-node", scenario="server", p99_bound_ms=200.0, **QUICK)
    made = bench(StageInputs(model=onnx), config, StageContext(tmp_path / "out"))
    assert read_measurement(made).under_load.scenario == "server"
    capped = BenchConfig(runtime="onnxruntime-node", memory_limit_mib=1, **QUICK)
    with pytest.raises(MemoryLimitError, match="found a limit of 1 MiB"):
        bench(StageInputs(model=onnx), capped, StageContext(tmp_path / "capped"))


def test_what_is_missing_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv(LOCATION_VARIABLE, str(tmp_path))
    assert find_package("onnxruntime-node") is None
    if shutil.which("node") is not None:
        assert "npm install onnxruntime-node" in str(OnnxRuntimeNode().unavailable_reason())
    with pytest.raises(EnvironmentLacksError, match="runtime 'onnxruntime-node' is not available"):
        get_runtime("onnxruntime-node")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "the program 'node' is not installed" in str(OnnxRuntimeWebNode().unavailable_reason())


def test_a_package_is_found_above_the_working_directory(monkeypatch, tmp_path):
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.2.3"}')
    monkeypatch.delenv(LOCATION_VARIABLE)
    (tmp_path / "below" / "it").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below" / "it")
    assert find_package("onnxruntime-web") == package
    assert OnnxRuntimeWebNode().version() == "1.2.3"
