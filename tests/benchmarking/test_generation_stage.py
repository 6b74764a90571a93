"""The stage `bench` for language models: what is measured, on which tokens, and what is refused first."""

from __future__ import annotations

import json
import shutil

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.benchmarking import generation_stage
from edgekit.benchmarking.result_files import read_comparison, read_generation_comparison, read_measurement
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.errors import EnvironmentLacksError, UsageError
from edgekit.extras import install_command
from edgekit.models.tokenizer import load_tokenizer
from edgekit.runtimes import genai_generation
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

QUICK = {"new_tokens": 3, "min_seconds": 0.01, "max_seconds": 0.1, "min_runs": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    loaded = pico_decoder("llama", layers=1, hidden_size=64, head_dim=16)
    return publish_model(loaded, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    return edgekit.export(model, out=tmp_path_factory.mktemp("export") / "onnx")


@pytest.fixture
def asked(monkeypatch):
    """Returns what would be measured, without measuring it."""
    found = {}

    class AskedError(Exception):
        pass

    def measure(subjects, sampling, *, seed, events):
        found.update(subjects=subjects, sampling=sampling)
        raise AskedError

    monkeypatch.setattr(generation_stage, "measure_generation", measure)

    def ask(inputs, tmp_path, **settings):
        with pytest.raises(AskedError):
            bench(inputs, BenchConfig(**settings), StageContext(tmp_path / "m"))
        assert not (tmp_path / "m").exists()
        return found["subjects"], found["sampling"]

    return ask


def test_models_and_runtimes_take_turns(export, tmp_path):
    other = Artifact.open(shutil.copytree(export.path, tmp_path / "other"))
    config = BenchConfig(runtime="onnxruntime", sweep_runtimes=["onnxruntime-genai"], depths=[20, 4, 20], **QUICK)
    artifact = bench(StageInputs(model=export, reference=other), config, StageContext(tmp_path / "m"))
    found = read_generation_comparison(artifact)
    assert found.names == [
        f"{name}, {runtime}, 1T" for name in ("onnx", "other") for runtime in ("onnxruntime", "onnxruntime-genai")
    ]
    assert found.measurements[0] == read_measurement(artifact)
    assert [entry.runtime for entry in found.measurements] == ["onnxruntime", "onnxruntime-genai"] * 2
    assert {entry.model_digest for entry in found.measurements} == {export.digest}
    assert [depth.context_tokens for depth in found.measurements[0].depths] == [4, 20]
    assert len(found.ratios) == 6
    assert read_comparison(artifact) is None
    assert artifact.lineage.inputs["reference"].digest == other.digest


def test_a_reference_of_another_kind_runs_in_its_own_runtime(export, model, tmp_path, asked):
    inputs = StageInputs(model=export, reference=model)
    subjects, _ = asked(inputs, tmp_path, runtime="onnxruntime-genai")
    assert [subject.runtime.name for subject in subjects] == ["onnxruntime-genai", "torch"]
    subjects, _ = asked(inputs, tmp_path, runtime="onnxruntime", sweep_runtimes=["torch"])
    assert [subject.runtime.name for subject in subjects] == ["onnxruntime", "torch"]


def test_threads_are_swept_within_each_runtime(export, tmp_path, asked):
    settings = {"runtime": "onnxruntime-genai", "sweep_runtimes": ["onnxruntime"], "sweep_threads": [2, 1]}
    subjects, _ = asked(StageInputs(model=export), tmp_path, **settings)
    found = [(subject.runtime.name, subject.threads) for subject in subjects]
    assert found == [("onnxruntime-genai", 1), ("onnxruntime-genai", 2), ("onnxruntime", 1), ("onnxruntime", 2)]


def test_by_default_the_usual_depths_that_fit(export, tmp_path, asked):
    _, sampling = asked(StageInputs(model=export), tmp_path)
    assert sampling.depths == (16,)  # of a context of 128
    assert sampling.context_length == 49


def test_prompts_are_ids_from_the_seed_or_the_text_of_the_data(export, tmp_path, asked):
    tokenizer = load_tokenizer(export.path)
    (subject,), _ = asked(StageInputs(model=export), tmp_path, depths=[40])
    (again,), _ = asked(StageInputs(model=export), tmp_path, depths=[40])
    assert subject.prompt == again.prompt
    assert len(subject.prompt) == 40
    assert not set(subject.prompt) & set(tokenizer.all_special_ids)
    data = pico_language_data(tmp_path)
    (subject,), _ = asked(StageInputs(model=export, data=data), tmp_path, depths=[40])
    texts = PreparedData.open(data).split("test").texts
    assert len(subject.prompt) == 40
    assert tokenizer.decode(subject.prompt)[:30] in "".join(texts)
    with pytest.raises(UsageError, match="needs a data artifact"):
        bench(StageInputs(model=export), BenchConfig(inputs="texts"), StageContext(tmp_path / "m"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": [16, 4096]}, "a prompt of 4096 tokens and new_tokens = 32, expected at most 127 together"),
        ({"depths": [95], "new_tokens": 33}, "a prompt of 95 tokens and new_tokens = 33"),
        ({"new_tokens": 500}, "a prompt of 16 tokens and new_tokens = 500"),
        ({"runtime": "llama.cpp"}, "(generates with gguf artifacts|is not available)"),
        ({"runtime": "torch"}, "generates with model artifacts"),
        ({"runtime": "onnxruntime-gena"}, "Did you mean 'onnxruntime-genai'"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(export, settings, message, tmp_path):
    with pytest.raises((UsageError, EnvironmentLacksError), match=message):
        bench(StageInputs(model=export), BenchConfig(**settings), StageContext(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_a_runtime_that_is_not_installed_says_how(export, tmp_path, monkeypatch):
    reason = f"the package 'onnxruntime-genai' is not installed. Install it: {install_command('genai')}"
    monkeypatch.setattr(genai_generation.GenAiGeneration, "unavailable_reason", lambda self: reason)
    with pytest.raises(EnvironmentLacksError, match="Install it: pip"):
        bench(StageInputs(model=export), BenchConfig(runtime="onnxruntime-genai"), StageContext(tmp_path / "m"))


def test_a_classifier_has_no_depths(tmp_path):
    classifier = pico_model_artifact(tmp_path / "classifier")
    with pytest.raises(UsageError, match="are for language models; found a classifier"):
        bench(StageInputs(model=classifier), BenchConfig(depths=[16]), StageContext(tmp_path / "m"))


def test_the_command_shows_one_model_or_all_that_took_turns(export, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    common = [str(export.path), "--depths", "4", "20", "--new-tokens", "3", "--min-runs", "2", "--min-seconds", "0.01"]
    common += ["--max-seconds", "0.1"]
    assert run(["bench", *common]) == 0
    shown = capsys.readouterr().out
    assert "after 20 tokens: decode" in shown
    assert "roofline" in shown
    both = ["--runtime", "onnxruntime", "onnxruntime-genai"]
    assert run(["bench", *common, *both]) == 0
    shown = capsys.readouterr().out
    assert "Measured in turn" in shown
    assert "onnxruntime-genai, 1T" in shown
    assert "after 20 tokens" in shown
    assert "memory is read at" in shown
    assert run(["bench", *common, *both, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["measurement"]["runtime"] == "onnxruntime"
    assert [entry["runtime"] for entry in result["in_turn"]["measurements"]] == ["onnxruntime", "onnxruntime-genai"]


def test_a_wrong_flag_of_the_command_is_one_error(export, capsys):
    assert run(["bench", str(export.path), "--depths", "0"]) == 2
    assert "edgekit bench: --depths: found 0 (int), expected greater than or equal to 1." in capsys.readouterr().err
