"""Finding runtimes, and the files that they open."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Lineage, publish
from edgekit.errors import ArtifactError, EnvironmentLacksError, UsageError
from edgekit.runtimes import protocol
from edgekit.runtimes.protocol import (
    get_runtime,
    list_runtimes,
    model_bytes,
    model_file,
    pad_token_id,
    runtime_for,
    runtimes,
    select_inputs,
)
from tests.runtimes.tiny import tiny_onnx_artifact


class Missing:
    """A runtime whose library nobody has."""

    name = "missing"
    formats = ("onnx",)
    libraries = ()

    def unavailable_reason(self):
        return "the package 'nowhere' is not installed. Install it: pip install nowhere"


def register(monkeypatch, **locations: str) -> None:
    """Lets the entry points be exactly these."""
    points = [
        importlib.metadata.EntryPoint(name, value, protocol.ENTRY_POINT_GROUP) for name, value in locations.items()
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


def test_every_registered_runtime_has_what_the_protocol_asks_for():
    found = {runtime.name: runtime for runtime in runtimes()}
    assert {"torch", "onnxruntime"} <= set(found)
    for name, runtime in found.items():
        assert runtime.name == name
        assert runtime.formats
        reason = runtime.unavailable_reason()
        elsewhere = name == "coreml" and "on a Mac" in (reason or "")
        from_npm = name.startswith(("onnxruntime-", "transformers.js"))
        assert reason is None or elsewhere or (from_npm and "nstall" in reason)
        assert reason is not None or runtime.version().count(".") >= 1


def test_built_in_runtimes_are_found_in_a_checkout_that_was_never_installed(monkeypatch):
    register(monkeypatch)
    javascript = ["onnxruntime-node", "onnxruntime-web", "onnxruntime-web-node"]
    expected = ["coreml", "executorch", "litert", "onnxruntime", *javascript, "openvino", "torch", "transformers.js"]
    assert list(list_runtimes()) == expected
    assert "onnx" in get_runtime("onnxruntime").formats


def test_a_plug_in_is_found_and_says_what_it_lacks(monkeypatch):
    register(monkeypatch, missing=f"{__name__}:Missing")
    assert "missing" in list_runtimes()
    with pytest.raises(EnvironmentLacksError, match="pip install nowhere"):
        get_runtime("missing")


def test_a_typo_names_the_nearest_runtime():
    with pytest.raises(UsageError, match="Did you mean 'onnxruntime'"):
        get_runtime("onnxruntim")


def test_the_runtime_follows_from_the_kind_of_artifact(tiny):
    assert runtime_for(tiny).name == "onnxruntime"
    with pytest.raises(UsageError, match=r"opens model artifacts, found one of kind 'onnx'\. Use onnxruntime"):
        runtime_for(tiny, "torch")


def test_data_is_no_model(tmp_path):
    with publish(tmp_path / "data", kind="data", lineage=Lineage(stage="source")) as directory:
        (directory / "data.json").write_text("{}")
    from edgekit.artifact import Artifact

    data = Artifact.open(tmp_path / "data")
    with pytest.raises(UsageError, match="no runtime opens artifacts of kind 'data'"):
        runtime_for(data)
    with pytest.raises(ArtifactError, match="expected a model"):
        model_file(data)


def test_the_model_file_is_the_usual_one_or_the_only_one(tiny, tmp_path):
    assert model_file(tiny) == tiny.path / "onnx" / "model.onnx"
    other = tiny_onnx_artifact(tmp_path / "other", file="onnx/model_quantized.onnx")
    assert model_file(other).name == "model_quantized.onnx"
    (other.path / "onnx" / "second.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"onnx/model_quantized\.onnx, onnx/second\.onnx"):
        model_file(other)


def test_the_size_counts_external_data_beside_the_model(tmp_path):
    artifact = tiny_onnx_artifact(tmp_path / "onnx")
    alone = model_bytes(artifact)
    assert alone == model_file(artifact).stat().st_size
    Path(f"{model_file(artifact)}.data").write_bytes(b"0" * 1000)
    assert model_bytes(artifact) == alone + 1000


def test_a_bundle_is_opened_as_the_export_it_holds(tiny, tmp_path):
    import shutil

    from edgekit.artifact import Artifact

    with publish(tmp_path / "bundle", kind="bundle", lineage=Lineage(stage="source")) as directory:
        for name in tiny.files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tiny.path / name, directory / name)
    bundle = Artifact.open(tmp_path / "bundle")
    assert runtime_for(bundle).name == "onnxruntime"
    assert model_bytes(bundle) == model_bytes(tiny)


def test_inputs_are_those_that_the_model_names():
    ids = np.array([[3, 4]])
    mask = np.ones_like(ids)
    assert list(select_inputs(["input_ids"], ids, mask)) == ["input_ids"]
    assert select_inputs(["token_type_ids"], ids, mask)["token_type_ids"].tolist() == [[0, 0]]
    with pytest.raises(UsageError, match="'pixel_values'"):
        select_inputs(["pixel_values"], ids, mask)


def test_padding_is_the_models_own(tiny, tmp_path):
    assert pad_token_id(tiny) == 0
    (tiny.path / "config.json").write_text('{"pad_token_id": null}')
    assert pad_token_id(tiny) == 0
