from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper

import edgekit
from edgekit.artifact import Artifact, Lineage, publish
from edgekit.errors import ParityError
from edgekit.exporters.parity import read_parity, require_parity
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

CHECK = {"documents": 4, "max_tokens": 40, "greedy_prompts": 2, "greedy_tokens": 8}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("check")
    model = publish_model(pico_decoder(layers=1, hidden_size=64, head_dim=16), directory / "model")
    return model, edgekit.export(model, out=directory / "onnx"), pico_language_data(directory)


@pytest.mark.parametrize("runtime", [None, "onnxruntime-genai"])
def test_an_export_passes_and_the_result_says_how_far_it_is(exported, runtime, tmp_path):
    model, export, data = exported
    config = edgekit.CheckConfig(**CHECK, runtime=runtime)
    parity = read_parity(edgekit.check(export, config, reference=model, data=data, out=tmp_path / "parity"))
    require_parity(parity)
    assert parity.runtime.startswith(runtime or "onnxruntime")
    assert parity.documents == 4
    assert parity.tokens > 40
    assert 0 <= parity.divergence <= parity.divergence_p99 < 1e-5
    assert parity.top1_agreement == parity.greedy_equal_share == 1
    assert parity.greedy_equal_tokens == 8
    assert parity.tokenizer_texts > 30
    assert (parity.template_texts > 0) == (runtime == "onnxruntime-genai")  # the only one that renders by itself
    assert parity.tokenizer_mismatches == parity.template_mismatches == 0


def test_an_altered_export_fails_in_every_way_of_driving(exported, tmp_path):
    model, export, data = exported
    altered = tmp_path / "altered"
    with publish(altered, kind="onnx", lineage=Lineage(stage="source")) as directory:
        for name in export.files:
            (directory / name).parent.mkdir(exist_ok=True, parents=True)
            (directory / name).write_bytes((export.path / name).read_bytes())
        file = directory / "onnx" / "model.onnx"
        proto = onnx.load(file)
        weight = next(each for each in proto.graph.initializer if each.name.endswith("down_proj.weight"))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
        onnx.save(proto, file)
    found = edgekit.check(
        Artifact.open(altered), edgekit.CheckConfig(**CHECK), reference=model, data=data, out=tmp_path / "parity"
    )
    parity = read_parity(found)
    assert not parity.passed
    assert {failure.split(":")[0] for failure in parity.failures} == {"exact-past", "shared-buffer"}
    with pytest.raises(ParityError, match="divergence"):
        require_parity(parity)
