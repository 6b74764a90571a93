"""The whole build of a pico language model: what it leaves, what it repeats, what fails it, what a kill costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import DataError, RecipeError, UnsupportedError
from edgekit.events import Event
from edgekit.packaging.bundle import verify_bundle
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.results import BuildResult, GenerationMeasurement, LanguageQuality, Unverified
from edgekit.runtimes.llama_cpp_library import LOCATION_VARIABLE
from edgekit.target import load_target
from tests.json_schema import problems
from tests.pico_decoders import pico_decoder
from tests.pico_language_recipe import RECIPE, make_recipe, write_directory_teacher
from tests.runtimes.llama_cpp import REASON

SCHEMA = Path(__file__).parents[1] / "docs" / "build.schema.json"
WITHOUT_GGUF = RECIPE.replace('[[export]]\nformat = "gguf"\ntargets = ["laptop-x86"]\n', "")
WITHOUT_ONNX = RECIPE.replace('[[export]]\nformat = "onnx"\ntargets = ["laptop-x86", "pixel-8"]\n', "")
HAS_LLAMA_CPP = REASON is None
PROMPTS = """
[data.unlabelled]
source = "asked.jsonl"
form = "prompt"
columns = { prompt = "question" }
[data.extra_tests.judged]
source = "judged.jsonl"
form = "prompt"
columns = { prompt = "question" }
[write]
max_new_tokens = 8
precision = "float32"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, BuildResult, list[Event]]:
    root = tmp_path_factory.mktemp("build")
    events: list[Event] = []
    recipe = load_recipe(str(make_recipe(root, RECIPE if HAS_LLAMA_CPP else WITHOUT_GGUF)))
    return root, build(recipe, root / "out", events=events.append), events


def test_every_stage_is_judged_by_perplexity_against_the_teacher_on_both_domains(built):
    _, result, _ = built
    assert [stage.kind for stage in result.stages] == ["finetune", "prune", "distill", "quantize"]
    finetuned, pruned, distilled, quantized = (stage.quality for stage in result.stages)
    assert all(isinstance(stage.quality, LanguageQuality) for stage in result.stages)
    assert finetuned.perplexity_ratio is None, "the teacher itself"
    assert finetuned.perplexity < 100, "it learned something of 300 tokens"
    for quality in (pruned, distilled, quantized):
        assert set(quality.parts) == {"test", "letters"}
        assert quality.divergence > 0
        assert 0 < quality.teacher_agreement < 1
    assert distilled.divergence < pruned.divergence, "the teacher heals what was cut"
    assert distilled.multiple_choice.questions == 2
    assert result.teacher_parameters > result.stages[1].parameters
    assert result.teacher_bytes > result.stages[-1].model_bytes


def test_every_export_is_verified_measured_and_bundled(built):
    root, result, _ = built
    assert (result.exit_code, result.failures) == (0, [])
    assert not (root / "out" / "work" / "memory").exists(), "what stages keep for each other goes with the build"
    expected = {("onnx", "laptop-x86"), ("onnx", "pixel-8")} | ({("gguf", "laptop-x86")} if HAS_LLAMA_CPP else set())
    assert {(export.format, export.target) for export in result.exports} == expected
    for export in result.exports:
        others = [parity.runtime.split()[0] for parity in export.other_parities]
        assert others == (["onnxruntime-genai"] if export.format == "onnx" else [])
        assert all(parity.passed for parity in (export.parity, *export.other_parities))
        assert isinstance(export.measurement, GenerationMeasurement)
        assert export.quality.perplexity_ratio < 3
        manifest = verify_bundle(root / "out" / export.bundle).manifest
        assert manifest.format == export.format
        assert list(manifest.writing.runtimes) == [export.parity.runtime.split()[0], *others]
    manifest = verify_bundle(root / "out" / result.exports[0].bundle).manifest
    assert manifest.versions.runtime_minimum == load_target("laptop-x86").runtime("onnxruntime").version
    phone = next(export for export in result.exports if export.target == "pixel-8")
    assert not phone.measured_on_target
    assert {estimate.unit for estimate in phone.estimates} == {"tokens/s", "bytes"}


def test_the_reports_are_whole_and_build_json_keeps_to_its_schema(built):
    root, result, _ = built
    values = json.loads((root / "out" / "build.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    assert list(problems(values, schema, schema)) == []
    assert list(problems({**values, "exports": [{**values["exports"][0], "bytes": "many"}]}, schema, schema))
    assert BuildResult.model_validate(values) == result
    page = (root / "out" / "report.html").read_text()
    for words in ("Perplexity by split", "onnxruntime-genai", "questions answered"):
        assert words in page
    assert "times the teacher's" in (root / "out" / "report.md").read_text()
    assert 'name="parity, onnxruntime-genai' in (root / "out" / "junit.xml").read_text()


def test_targets_share_a_file_and_what_was_found_out_about_it(built):
    root, result, events = built
    started = [event.stage for event in events if event.kind == "stage-started"]
    formats = {export.format for export in result.exports}
    assert started.count("export") == len(formats)
    assert started.count("check") == len(formats) + 1, "onnx under two runtimes"
    assert "capture" not in started, "the teacher runs beside its student"
    laptop, phone = (export for export in result.exports if export.format == "onnx")
    assert laptop.parity == phone.parity
    assert (root / "out" / laptop.bundle) != (root / "out" / phone.bundle)


def test_a_second_build_takes_everything_from_the_cache(built):
    root, first, _ = built
    events: list[Event] = []
    again = build(load_recipe(str(root / "recipe.toml")), root / "out", events=events.append)
    assert [event.stage for event in events if event.kind == "stage-started"] == []
    assert all(stage.cached for stage in again.stages)
    assert again.exports == first.exports


def test_other_questions_are_asked_again_and_nothing_is_trained(built):
    root, _, _ = built
    recipe = load_recipe(str(root / "recipe.toml"))
    file = root / "questions.jsonl"
    before = file.read_text()
    file.write_text(before + before.splitlines()[0] + "\n")
    events: list[Event] = []
    try:
        result = build(recipe, root / "out", events=events.append)
    finally:
        file.write_text(before)
    started = {event.stage for event in events if event.kind == "stage-started"}
    assert started.isdisjoint({"finetune", "prune", "distill", "quantize", "export", "check", "bench"})
    assert "evaluate" in started
    assert result.stages[-1].quality.multiple_choice.questions == 3


def test_a_killed_build_resumes_to_the_same_weights(built):
    root, first, _ = built
    recipe = root / "killed.toml"
    recipe.write_text(WITHOUT_ONNX)
    command = [sys.executable, "-m", "edgekit.cli", "build", str(recipe), "--out", str(root / "killed")]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        event = json.loads(line)
        if event["kind"] == "progress" and event.get("stage") == "distill" and event.get("completed", 0) > 2:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = build(load_recipe(str(recipe)), root / "killed")
    assert resumed.exit_code == (0 if HAS_LLAMA_CPP else 4)
    assert [stage.cached for stage in resumed.stages] == [True, True, False, False]
    assert [stage.digest for stage in resumed.stages] == [stage.digest for stage in first.stages]


def test_a_signal_is_captured_where_the_recipe_asks_for_it(built):
    root, first, _ = built
    recipe = root / "captured.toml"
    kept = 'language = { sequence_length = 64, signal = "top-k" }'
    recipe.write_text(kept.join(WITHOUT_ONNX.rsplit("language = { sequence_length = 64 }", 1)))
    events: list[Event] = []
    result = build(load_recipe(str(recipe)), root / "out", events=events.append)
    started = [event.stage for event in events if event.kind == "stage-started"]
    assert started[:2] == ["capture", "distill"], "what came before is the same"
    assert [step.kind for step in result.preparation] == ["prepare", "import", "capture"]
    pruned, distilled = result.stages[1].quality, result.stages[2].quality
    assert distilled.divergence < pruned.divergence
    assert result.stages[2].digest != first.stages[2].digest


def test_the_teacher_answers_prompts_and_what_it_said_is_learned_and_judged_on(tmp_path):
    first, middle, last = (RECIPE.index(f'[[stage]]\nkind = "{kind}"') for kind in ("finetune", "prune", "quantize"))
    end = RECIPE.index("[[export]]")
    text = (RECIPE[:first] + RECIPE[middle:last] + RECIPE[end:]).replace("[[export]]", PROMPTS + "[[export]]", 1)
    text = text.replace('\n[[export]]\nformat = "gguf"\ntargets = ["laptop-x86"]', "").replace(', "pixel-8"', "")
    text = text.replace('splits = ["test", "letters"]', 'splits = ["test", "judged"]\nanswers = 3\nanswer_tokens = 4')
    for name in ("asked", "judged"):
        rows = [json.dumps({"question": f"the {name} of {n}"}) for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    recipe = make_recipe(tmp_path, text.replace("perplexity_ratio = 3.0", "perplexity_ratio = 3.0\nanswered = 0.3"))
    events: list[Event] = []
    result = build(load_recipe(str(recipe)), tmp_path / "out", events=events.append)
    started = [event.stage for event in events if event.kind == "stage-started"]
    assert started[:4] == ["prepare", "import", "write", "evaluate"], "a teacher is judged on its own answers"
    assert [step.kind for step in result.preparation] == ["prepare", "import", "write"]
    assert set(result.teacher_quality.parts) == {"test", "judged"}
    asked = [quality.answers for quality in (result.teacher_quality, result.exports[0].quality)]
    assert [found.prompts for found in asked] == [3, 3]
    assert [example.prompt for example in asked[0].examples] == [example.prompt for example in asked[1].examples]
    assert {check.name: check.limit for check in result.exports[0].budget.checks}["answered"] == 0.3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What it answers" in page
    assert asked[0].examples[0].prompt in page


def test_a_difference_under_any_runtime_of_the_target_exits_3_and_bundles_nothing(built):
    root, _, _ = built
    text = (root / "recipe.toml").read_text().replace("[parity]", "[parity]\ndivergence = 0.0")
    other = root / "strict.toml"
    other.write_text(text)
    result = build(load_recipe(str(other)), root / "out")
    assert result.exit_code == 3
    assert any("parity: exact-past: divergence" in failure for failure in result.failures)
    assert any("parity under onnxruntime-genai" in failure for failure in result.failures)
    assert not list((root / "out" / "bundles").glob("pico-chat*"))


def test_without_llama_cpp_gguf_is_unverified_told_early_and_the_rest_ships(tmp_path, monkeypatch):
    monkeypatch.setenv(LOCATION_VARIABLE, str(tmp_path / "nowhere"))
    write_directory_teacher(tmp_path / "teacher")
    first, last = RECIPE.index("[[stage]]"), RECIPE.index('[[stage]]\nkind = "quantize"')
    text = (RECIPE[:first] + RECIPE[last:]).replace("teacher.gguf", "teacher").replace('"gptq"', '"hqq"')
    events: list[Event] = []
    result = build(load_recipe(str(make_recipe(tmp_path, text))), tmp_path / "out", events=events.append)
    kinds = [(event.kind, event.stage) for event in events]
    told = next(event for event in events if event.stage == "build" and "npm install node-llama-cpp" in event.text)
    assert events.index(told) < kinds.index(("stage-started", "import"))
    assert result.exit_code == 4
    gguf = result.exports[-1]
    assert isinstance(gguf.parity, Unverified)
    assert (gguf.bundle, gguf.quality, gguf.measurement) == (None, None, None)
    assert any("gguf for laptop-x86: parity: Unverified under llama.cpp" in failure for failure in result.failures)
    assert all(export.bundle for export in result.exports[:-1])
    assert "Not verified" in (tmp_path / "out" / "report.html").read_text()


def test_what_the_questions_or_the_teacher_lack_is_said_before_any_training(tmp_path):
    recipe = make_recipe(tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="line 1: lacks 'choices'"):
        build(load_recipe(str(recipe)), tmp_path / "out")
    from edgekit.models.source import save_model

    save_model(pico_decoder("opt"), tmp_path / "opt")
    asked = '[evaluate.multiple_choice]\nsource = "questions.jsonl"\n'
    text = RECIPE.replace("teacher.gguf", "opt").replace(asked, "")
    events: list[Event] = []
    with pytest.raises(UnsupportedError, match="found the architecture 'opt', expected one of"):
        build(load_recipe(str(make_recipe(tmp_path, text))), tmp_path / "out", events=events.append)
    assert "finetune" not in {event.stage for event in events}
    with pytest.raises(RecipeError, match="found 3-bit symmetric codes"):
        load_recipe(str(make_recipe(tmp_path, RECIPE.replace("bits = 4", "bits = 3"))))
