"""The runtime `coreml`: what it says where there is no Core ML, and what it makes of batches and answers."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from edgekit.runtimes.coreml_runtime import CoreMLRuntime, CoreMLSession
from edgekit.runtimes.protocol import runtime_elsewhere


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")
def test_elsewhere_it_says_what_to_do():
    reason = CoreMLRuntime().unavailable_reason()
    assert reason is not None
    assert "verify_on_mac.py" in reason
    missing = runtime_elsewhere("coreml")
    assert missing is not None
    assert (missing.name, missing.reason) == ("coreml", reason)
    assert runtime_elsewhere("onnx") is None


def test_on_a_mac_the_package_is_looked_for(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "[coreml]" in str(CoreMLRuntime().unavailable_reason())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert CoreMLRuntime().unavailable_reason() is None


def test_texts_of_a_batch_run_one_after_the_other_as_int32():
    seen = []

    def predict(given):
        seen.append(given)
        return {"logits": np.array([[given["input_ids"].sum(), given["attention_mask"].sum()]], dtype=np.float16)}

    session = CoreMLSession(predict, ["input_ids", "attention_mask"])
    ids, mask = np.arange(6).reshape(2, 3), np.array([[1, 1, 1], [1, 0, 0]])
    logits = session.run({"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0})["logits"]
    np.testing.assert_array_equal(logits, np.array([[3, 3], [12, 1]], dtype=np.float32))
    assert logits.dtype == np.float32
    assert [set(given) for given in seen] == [{"input_ids", "attention_mask"}] * 2
    assert {(given["input_ids"].shape, given["input_ids"].dtype.name) for given in seen} == {((1, 3), "int32")}
