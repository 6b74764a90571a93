"""Bundles of language models: what they hold, that their examples run, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.chat.conversation import ConversationConfig
from edgekit.chat.opening import open_conversation
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import CorruptArtifactError, EnvironmentLacksError, ModelError, UnsupportedError, UsageError
from edgekit.exporters.generation_parity import write_greedily
from edgekit.exporters.parity import read_parity
from edgekit.packaging.bundle import verify_bundle
from edgekit.packaging.chat_template import render_chat
from edgekit.packaging.facts import BundleFacts
from edgekit.packaging.language_bundle import _template_vectors
from edgekit.packaging.stage import PackageConfig, package
from edgekit.results import Unverified
from edgekit.runtimes.generation import GenerationConfig
from edgekit.runtimes.llama_cpp_library import LOCATION_VARIABLE
from edgekit.runtimes.torch_generation import TorchGenerationSession
from edgekit.target import Target
from tests.packaging.examples import target
from tests.peers.opening import PEERS, needs_peers
from tests.pico import publish_model
from tests.pico_decoders import CONTEXT, pico_decoder
from tests.pico_language import pico_language_data
from tests.runtimes.llama_cpp import needs_llama_cpp

QUESTION = "Where is the old man?"
RUNTIMES = [
    {"name": "onnxruntime", "version": "1.23.0", "opset": 21, "ir_version": 10, "threads": 1},
    {"name": "onnxruntime-genai", "version": "0.18.0", "threads": 1},
    {"name": "llama.cpp", "version": "0.5.0", "threads": 1},
]
CHECK = {"documents": 2, "max_tokens": 24, "greedy_prompts": 1, "greedy_tokens": 4}
# Of 300 seeds the one that answers in words: "in sea sea sea sea sea sea", then colons, at which it is told to end.
LOADED = pico_decoder(layers=2, hidden_size=64, intermediate_size=128, head_dim=16, seed=264)
ENDS = [LOADED.tokenizer.eos_token_id, LOADED.tokenizer(":")["input_ids"][0]]
LOADED.model.generation_config.eos_token_id = ENDS


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, BundleFacts]]:
    """A format to an export of `LOADED`, with the parity checks of every runtime that is here."""
    root = tmp_path_factory.mktemp("exports")
    model, data = publish_model(LOADED, root / "model"), pico_language_data(root)
    found = {}
    for form, runtimes in (("onnx", ["onnxruntime", "onnxruntime-genai"]), ("gguf", ["llama.cpp"])):
        export = edgekit.export(model, edgekit.ExportConfig(format=form), out=root / form)
        parities = [
            read_parity(
                edgekit.check(
                    export,
                    edgekit.CheckConfig(**CHECK, runtime=runtime),
                    reference=model,
                    data=data,
                    out=root / f"parity-{runtime}",
                )
            )
            for runtime in runtimes
        ]
        found[form] = (export, BundleFacts(parity=parities[0], other_parities=parities[1:]))
    return found


def bundle(
    exports: dict[str, tuple[Artifact, BundleFacts]], form: str, out: Path, to: Target | None = None
) -> Artifact:
    export, facts = exports[form]
    config = PackageConfig(target=to or target(runtimes=RUNTIMES), name="chat", license="Apache-2.0", facts=facts)
    return package(StageInputs(model=export), config, StageContext(out))


def greedy_answer() -> str:
    """The text that torch writes after the question, up to an end token."""
    messages = [{"role": "user", "content": QUESTION}]
    prompt = LOADED.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = LOADED.tokenizer(prompt)["input_ids"]
    written = write_greedily(TorchGenerationSession(LOADED.model, CONTEXT), ids, CONTEXT - len(ids))
    end = next(position for position, token in enumerate(written) if token in ENDS)
    return LOADED.tokenizer.decode(written[:end])


def run(command: list[str], directory: Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.rstrip("\n")


def test_an_onnx_bundle_holds_what_three_runtimes_and_an_app_need(exports, tmp_path):
    made = bundle(exports, "onnx", tmp_path / "bundle")
    export = exports["onnx"][0]
    assert {name: made.files[name] for name in export.files} == export.files
    own = {"manifest.json", "tokenizer_vectors.json", "template_vectors.json", "MODEL_CARD.md"}
    examples = {"usage_onnxruntime.py", "usage_onnxruntime_genai.py"}
    assert set(made.files) == set(export.files) | own | examples
    assert {"genai_config.json", "generation_config.json", "chat_template.jinja"} <= set(made.files)
    manifest = verify_bundle(made.path).manifest
    assert manifest.writing is not None
    assert manifest.writing.runtimes == {"onnxruntime": "1.23.0", "onnxruntime-genai": "0.18.0"}
    assert manifest.writing.ends == ENDS
    assert (manifest.max_length, manifest.versions.opset, manifest.labels) == (CONTEXT, 21, [])
    card = (made.path / "MODEL_CARD.md").read_text()
    assert "pip install 'onnxruntime-genai>=0.18.0'" in card
    assert "likeliest tokens agree" in card


def test_a_target_that_promises_an_older_onnxruntime_than_the_file_needs_is_refused(exports, tmp_path):
    old = [{**runtime, "version": "1.20.0"} if runtime["name"] == "onnxruntime" else runtime for runtime in RUNTIMES]
    with pytest.raises(UnsupportedError, match=r"reads since 1\.22\.0, but 'some-laptop' promises 1\.20\.0\. Raise"):
        bundle(exports, "onnx", tmp_path / "bundle", to=target(runtimes=old))
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_the_same_when_made_again(exports, tmp_path):
    assert bundle(exports, "onnx", tmp_path / "a").digest == bundle(exports, "onnx", tmp_path / "b").digest


@pytest.mark.parametrize("script", ["usage_onnxruntime.py", "usage_onnxruntime_genai.py"])
def test_a_python_example_writes_what_torch_writes_in_about_twenty_lines(exports, tmp_path, script):
    made = bundle(exports, "onnx", tmp_path / "bundle")
    file = made.path / script
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 27
    assert max(map(len, lines)) <= 120
    assert run([sys.executable, "-I", str(file), QUESTION], tmp_path) == greedy_answer()


@needs_llama_cpp
@pytest.mark.runtime
def test_a_gguf_bundle_runs_in_llama_cpp_and_in_its_example(exports, tmp_path):
    made = bundle(exports, "gguf", tmp_path / "bundle")
    manifest = verify_bundle(made.path).manifest
    assert (manifest.format, manifest.model, manifest.versions.opset) == ("gguf", "model.gguf", None)
    assert "usage_llama_cpp.mjs" in made.files
    assert "usage_onnxruntime.py" not in made.files
    opened = edgekit.load_language_model(made.path)
    written = write_greedily(opened.open(GenerationConfig()), opened.prompt([{"role": "user", "content": QUESTION}]), 4)
    assert greedy_answer().startswith(opened.text(written))
    assert open_conversation(made, ConversationConfig()).runtime.startswith("llama.cpp")
    modules = Path(os.environ.get(LOCATION_VARIABLE, "")).parents[3]
    if shutil.which("node") is None or not (modules / "node-llama-cpp").is_dir():
        pytest.skip("node-llama-cpp is not installed: npm install node-llama-cpp@3.22.1")
    (tmp_path / "node_modules").symlink_to(modules)
    shown = run(["node", str(made.path / "usage_llama_cpp.mjs"), QUESTION], tmp_path)
    assert shown == greedy_answer()


@needs_peers
@pytest.mark.runtime
def test_a_browsers_bundle_runs_in_transformers_js(exports, tmp_path):
    made = bundle(exports, "onnx", tmp_path / "bundle", target("browser", runtimes=RUNTIMES))
    (tmp_path / "node_modules").symlink_to(PEERS / "node_modules")
    shown = run(["node", str(made.path / "usage_transformers_js.mjs"), QUESTION], tmp_path)
    assert shown == greedy_answer() + ":"  # it leaves out special tokens only, and this end is none


@pytest.mark.parametrize("form_factor", ["phone", "laptop", "single-board", "browser"])
def test_every_platform_says_how_to_run_it(exports, tmp_path, form_factor):
    made = bundle(exports, "onnx", tmp_path / "bundle", target(form_factor, runtimes=RUNTIMES))
    card = (made.path / "MODEL_CARD.md").read_text()
    assert "usage_onnxruntime.py" in card
    assert ("usage_transformers_js.mjs" in made.files) == (form_factor == "browser")
    assert "usage.kt" not in made.files


@pytest.mark.parametrize("file_format", ["onnx", pytest.param("gguf", marks=[needs_llama_cpp, pytest.mark.runtime])])
def test_an_iphone_is_not_told_of_java(exports, tmp_path, file_format):
    phone = target("phone", operating_system="ios", runtimes=RUNTIMES)
    card = (bundle(exports, file_format, tmp_path / "bundle", phone).path / "MODEL_CARD.md").read_text()
    assert "Java" not in card
    assert ("onnxruntime's Swift package" if file_format == "onnx" else "llama.cpp's XCFramework") in card


def test_a_bundle_opens_and_says_what_torch_says(exports, tmp_path):
    made = bundle(exports, "onnx", tmp_path / "bundle")
    opened = edgekit.load_language_model(made.path)
    messages = [{"role": "user", "content": QUESTION}]
    expected = LOADED.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert opened.prompt(messages) == expected
    for runtime in (None, "onnxruntime-genai"):
        written = write_greedily(opened.open(GenerationConfig(), runtime), opened.prompt(messages), 12)
        assert written == write_greedily(TorchGenerationSession(LOADED.model, CONTEXT), expected, 12)
    assert opened.ends == ENDS
    with pytest.raises(UsageError, match=r"language model, expected a classifier.*load_language_model"):
        edgekit.load(made.path)


def test_an_altered_template_is_found_even_when_its_digest_is_right(exports, tmp_path):
    made = bundle(exports, "onnx", tmp_path / "bundle")
    opened = edgekit.load_language_model(made.path)
    template = made.path / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "robot"))
    with pytest.raises(CorruptArtifactError, match="chat_template"):
        verify_bundle(made.path)
    from edgekit.packaging.language_bundle import check_language

    with pytest.raises(CorruptArtifactError, match="writes the conversation"):
        check_language(opened)


def test_an_unverified_export_is_not_bundled_and_says_what_to_install(exports, tmp_path):
    export, _ = exports["onnx"]
    unseen = Unverified(runtime="llama.cpp", reason="Install it.", model_digest=export.digest)
    config = PackageConfig(target=target(), name="chat", facts=BundleFacts(parity=unseen))
    with pytest.raises(EnvironmentLacksError, match=r"unverified: Install it\. Nothing was bundled"):
        package(StageInputs(model=export), config, StageContext(tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_a_template_is_written_as_transformers_writes_it_and_its_refusal_is_told():
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ bos_token }}"
    assert render_chat(template, [{"role": "user", "content": "a"}], {"bos_token": "<s>"}) == "<s>"
    with pytest.raises(UsageError, match="user first"):
        render_chat(template, [{"role": "system", "content": "a"}], {})


def test_files_in_json_are_read_by_other_programs(exports, tmp_path):
    made = bundle(exports, "onnx", tmp_path / "bundle")
    vectors = json.loads((made.path / "template_vectors.json").read_text())
    assert len(vectors) > 10
    assert vectors[1]["text"].startswith("<|im_start|>user\n")


def test_a_model_without_a_template_writes_a_text_on(tmp_path):
    loaded = pico_decoder(layers=2, hidden_size=64, intermediate_size=128, head_dim=16, seed=264)
    loaded.tokenizer.chat_template = None
    loaded.model.generation_config.eos_token_id = ENDS
    model, data = publish_model(loaded, tmp_path / "model"), pico_language_data(tmp_path)
    export = edgekit.export(model, out=tmp_path / "onnx")
    found = edgekit.check(export, edgekit.CheckConfig(**CHECK), reference=model, data=data, out=tmp_path / "parity")
    made = bundle({"onnx": (export, BundleFacts(parity=read_parity(found)))}, "onnx", tmp_path / "bundle")
    assert not {"chat_template.jinja", "template_vectors.json"} & set(made.files)
    opened = edgekit.load_language_model(made.path)
    text = "The old man and the sea"
    prompt = opened.prompt([{"role": "user", "content": text}])
    assert prompt == loaded.tokenizer(text)["input_ids"]
    written = write_greedily(opened.open(GenerationConfig()), prompt, CONTEXT - len(prompt))
    end = next((place for place, token in enumerate(written) if token in ENDS), len(written))
    assert run([sys.executable, "-I", str(made.path / "usage_onnxruntime.py"), text], tmp_path) == opened.text(
        written[:end]
    ).rstrip("\n")


def test_a_conversation_that_the_template_refuses_is_no_vector_and_a_template_that_refuses_all_is_an_error():
    tokenizer = pico_decoder().tokenizer
    tokenizer.chat_template = "{% if messages[1:] %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}"
    vectors = _template_vectors(tokenizer)
    assert vectors
    assert all(vector["text"] == vector["messages"][0]["content"] for vector in vectors)
    for template in ("{{ raise_exception('never') }}", "{% for m in messages %}"):
        tokenizer.chat_template = template
        with pytest.raises(ModelError, match="the chat template fails on every conversation"):
            _template_vectors(tokenizer)
