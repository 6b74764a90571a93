"""onnxruntime as edgekit sets it up."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import ModelError
from edgekit.runtimes.onnxruntime_runtime import PROVIDER, SESSION_SETTINGS, OnnxRuntime
from edgekit.runtimes.protocol import SessionConfig, model_file
from tests.pico import pico_tokenizer
from tests.runtimes.tiny import expected_logits, tiny_onnx_artifact


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


@pytest.mark.parametrize("config", [SessionConfig(), SessionConfig(threads=2, graph_optimization=False)])
def test_logits_are_what_the_graph_says(tiny, config):
    session = OnnxRuntime().open(tiny, config)
    ids = np.random.default_rng(0).integers(5, 100, size=(3, 11))
    mask = np.tril(np.ones((3, 11), dtype=np.int64), k=8)
    found = session.run({"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0})
    assert list(found) == session.output_names == ["logits"]
    assert session.input_names == ["input_ids", "attention_mask"]
    np.testing.assert_allclose(found["logits"], expected_logits(ids, mask, len(pico_tokenizer("bert"))), atol=1e-5)


def test_the_session_has_the_threads_asked_for_and_only_the_cpu(tiny):
    session = OnnxRuntime().open(tiny, SessionConfig(threads=2))._session
    assert session.get_providers() == [PROVIDER]
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_broken_file_is_a_clear_error(tmp_path):
    artifact = tiny_onnx_artifact(tmp_path / "onnx")
    model_file(artifact).write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.onnx: onnxruntime .* cannot open it"):
        OnnxRuntime().open(artifact, SessionConfig())


def test_no_option_changes_a_result():
    """An app opens the file with default options: what is measured and checked must be what it computes."""
    assert set(SESSION_SETTINGS) == {"session.intra_op.allow_spinning", "session.inter_op.allow_spinning"}
