from __future__ import annotations

import onnx
import pytest
from gguf import GGUFReader
from onnx import numpy_helper

import edgekit
from edgekit.artifact import Artifact, Lineage, publish
from edgekit.cli import run
from edgekit.errors import EnvironmentLacksError, ParityError, UsageError
from edgekit.exporters.parity import read_parity, require_parity
from edgekit.results import Unverified
from edgekit.runtimes.generation import GenerationConfig, generation_runtime_for
from tests.models.test_gguf_source import rewrite
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data
from tests.runtimes.llama_cpp import needs_llama_cpp

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


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A model with 4-bit codes and its GGUF."""
    directory = tmp_path_factory.mktemp("gguf")
    loaded = pico_decoder(layers=2, hidden_size=64, intermediate_size=128, head_dim=16)
    model = publish_model(loaded, directory / "floats")
    config = edgekit.QuantizeConfig(bits=4, group_size=32)
    codes = edgekit.quantize(model, config, out=directory / "codes")
    export = edgekit.export(codes, edgekit.ExportConfig(format="gguf"), out=directory / "gguf")
    return codes, export, pico_language_data(directory)


@needs_llama_cpp
@pytest.mark.runtime
def test_a_gguf_passes_under_llama_cpp_with_its_tokenizer_and_template(coded, tmp_path):
    codes, export, data = coded
    found = edgekit.check(export, edgekit.CheckConfig(**CHECK), reference=codes, data=data, out=tmp_path / "parity")
    parity = read_parity(found)
    require_parity(parity)
    assert parity.runtime.startswith("llama.cpp 0.5")
    assert (parity.driving, parity.documents, parity.greedy_prompts) == ("engine", 4, 2)
    assert 0 < parity.divergence < max(1e-3, 2 * parity.own_divergence)
    assert parity.divergence_p99 < max(1e-2, 2 * parity.own_divergence_p99)
    assert parity.own_divergence > 0
    assert parity.top1_agreement >= 0.9
    assert parity.tokenizer_texts > 30
    assert (parity.tokenizer_mismatches, parity.template_texts, parity.template_mismatches) == (0, 1, 0)


@needs_llama_cpp
@pytest.mark.runtime
@pytest.mark.parametrize("fault", ["rotary base", "norm", "template", "merges"])
def test_a_gguf_that_says_something_else_fails(coded, tmp_path, fault):
    codes, export, data = coded
    altered = tmp_path / "altered"
    with publish(altered, kind="gguf", lineage=Lineage(stage="source")) as directory:
        for name in export.files:
            (directory / name).write_bytes((export.path / name).read_bytes())
        alter(directory / "model.gguf", fault)
    config = edgekit.CheckConfig(**CHECK)
    found = edgekit.check(Artifact.open(altered), config, reference=codes, data=data, out=tmp_path / "parity")
    parity = read_parity(found)
    assert not parity.passed
    expected = {"rotary base": "divergence", "norm": "divergence", "template": "chat template in the file"}
    assert expected.get(fault, "tokenized otherwise by llama.cpp") in " ".join(parity.failures)


def alter(file, fault):
    """Writes a GGUF again with one thing wrong in it."""
    metadata = {
        "rotary base": {"llama.rope.freq_base": 100.0},
        "template": {"tokenizer.chat_template": "{{ messages[0].content }}"},
        "merges": {"tokenizer.ggml.merges": GGUFReader(file).fields["tokenizer.ggml.merges"].contents()[:10]},
    }
    rewritten = rewrite(file, file.with_suffix(".new"), changes=metadata.get(fault, {}))
    if fault == "norm":
        reader = GGUFReader(rewritten, "r+")
        next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_norm.weight").data[:] *= 3
        reader.data.flush()
    rewritten.replace(file)


def test_without_the_runtime_an_export_is_unverified_and_never_passed(coded, tmp_path, monkeypatch):
    codes, export, data = coded
    monkeypatch.setenv("EDGEKIT_LLAMA_CPP", str(tmp_path / "nowhere"))
    out = tmp_path / "parity"
    parity = read_parity(edgekit.check(export, edgekit.CheckConfig(**CHECK), reference=codes, data=data, out=out))
    assert isinstance(parity, Unverified)
    assert (parity.passed, parity.runtime, parity.model_digest) == (False, "llama.cpp", export.digest)
    assert "npm install node-llama-cpp" in parity.reason
    with pytest.raises(EnvironmentLacksError, match=r"unverified: .*npm install node-llama-cpp"):
        require_parity(parity)
    command = ["check", str(export.path), str(tmp_path / "again"), "--reference", str(codes.path)]
    assert run([*command, "--data", str(data.path)]) == 4


ONE_QUESTION = "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"


def test_a_conversation_that_the_template_refuses_is_one_that_a_runtime_should_refuse_too(tmp_path):
    loaded = pico_decoder("llama", layers=1)
    loaded.tokenizer.chat_template = ONE_QUESTION
    model, data = publish_model(loaded, tmp_path / "model"), pico_language_data(tmp_path)
    export = edgekit.export(model, out=tmp_path / "onnx")
    config = edgekit.CheckConfig(**CHECK, runtime="onnxruntime-genai")
    parity = read_parity(edgekit.check(export, config, reference=model, data=data, out=tmp_path / "parity"))
    assert parity.passed, parity.failures
    assert (parity.template_texts > 10, parity.template_mismatches) == (True, 0)
    session = generation_runtime_for(export, "onnxruntime-genai").open(export, GenerationConfig())
    with pytest.raises(UsageError, match="its template engine fails on this conversation"):
        session.render([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
