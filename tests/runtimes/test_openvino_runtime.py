"""OpenVINO as edgekit sets it up: what onnxruntime computes, and no rounding of its own."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

import edgekit
from edgekit.errors import EnvironmentLacksError, ModelError
from edgekit.runtimes.openvino_runtime import OpenVinoRuntime
from edgekit.runtimes.protocol import SessionConfig, get_runtime, model_file
from tests.exporters.test_onnx import SCHEMES
from tests.exporters.test_standard_onnx import OTHERS
from tests.pico import pico_model_artifact, pico_tokenizer
from tests.runtimes.tiny import expected_logits, tiny_onnx_artifact

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


def batch(seed=0, rows=3, length=11):
    ids = np.random.default_rng(seed).integers(5, 100, size=(rows, length))
    mask = np.tril(np.ones((rows, length), dtype=np.int64), k=8)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}


@pytest.mark.parametrize("config", [SessionConfig(), SessionConfig(threads=2)])
def test_logits_are_what_the_graph_says(tiny, config):
    session = OpenVinoRuntime().open(tiny, config)
    inputs = batch()
    found = session.run(inputs)
    assert list(found) == session.output_names == ["logits"]
    assert session.input_names == ["input_ids", "attention_mask"]
    wanted = expected_logits(inputs["input_ids"], inputs["attention_mask"], len(pico_tokenizer("bert")))
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)


def test_it_has_the_threads_asked_for_and_rounds_nothing(tiny):
    compiled = OpenVinoRuntime().open(tiny, SessionConfig(threads=2))._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0


@pytest.mark.parametrize(
    ("name", "dialect"),
    [(name, "standard") for name in [*SCHEMES, *OTHERS]] + [(name, "onnxruntime") for name in SCHEMES],
)
def test_every_scheme_is_onnxruntimes_in_both_dialects(name, dialect, tmp_path):
    settings = (SCHEMES | OTHERS)[name]
    model = pico_model_artifact(tmp_path / "model", layers=1)
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=tmp_path / "student")
    export = edgekit.export(student, edgekit.ExportConfig(dialect=dialect), out=tmp_path / "onnx")
    ours, theirs = (get_runtime(each).open(export, SessionConfig()) for each in ("openvino", "onnxruntime"))
    for seed, (rows, length) in enumerate([(1, 5), (3, 11), (2, 16)]):
        inputs = batch(seed, rows, length)
        found, wanted = ours.run(inputs)["logits"], theirs.run(inputs)["logits"]
        rounds = settings.get("activations") != "float"
        np.testing.assert_allclose(found, wanted, atol=5e-3 if rounds else 2e-5)


def test_threads_may_call_at_once_and_results_stay(tiny):
    session = OpenVinoRuntime().open(tiny, SessionConfig())
    wanted = [session.run(batch(seed))["logits"] for seed in range(8)]
    found = {}

    def call(seed):
        for _ in range(20):
            found[seed] = session.run(batch(seed))["logits"]

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(8):
        np.testing.assert_array_equal(found[seed], wanted[seed])


def test_the_output_keeps_its_name_where_openvino_drops_the_node_that_wrote_it(tiny, tmp_path):
    """A bias of a head that was never trained is 0; the product then has both names, and its own sorts first."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(tiny.path / "onnx" / "model.onnx")
    model.graph.node[-1].output[0] = "head.product"
    model.graph.node.append(helper.make_node("Add", ["head.product", "bias"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, dtype=np.float32), "bias"))
    onnx.save(model, tmp_path / "model.onnx")
    session = OpenVinoRuntime().open(SimpleNamespace(path=tmp_path, kind="onnx"), SessionConfig())
    assert session.output_names == ["logits"]
    plain = OpenVinoRuntime().open(tiny, SessionConfig()).run(batch())["logits"]
    np.testing.assert_allclose(session.run(batch())["logits"], plain, atol=1e-5)


def test_a_broken_file_is_a_clear_error(tmp_path):
    artifact = tiny_onnx_artifact(tmp_path / "onnx")
    model_file(artifact).write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.onnx: OpenVINO .* cannot open it .*Export it again"):
        OpenVinoRuntime().open(artifact, SessionConfig())


def test_an_unknown_operator_is_named(tmp_path):
    import onnx

    artifact = tiny_onnx_artifact(tmp_path / "onnx")
    proto = onnx.load(model_file(artifact))
    proto.graph.node[-1].domain, proto.graph.node[-1].op_type = "com.example", "Mystery"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(proto, model_file(artifact))
    with pytest.raises(ModelError, match=r"cannot open it .*Mystery.*dialect 'standard'"):
        OpenVinoRuntime().open(artifact, SessionConfig())


def test_without_the_package_the_command_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacksError, match=r"'openvino' is not installed.*pip install -c constraints.txt"):
        get_runtime("openvino")
