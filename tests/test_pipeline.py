"""The whole build on pico input: what it leaves, what it repeats, what fails it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.cli import run
from edgekit.errors import EnvironmentLacksError, ModelError
from edgekit.events import Event
from edgekit.pipeline import _report_quality, build
from edgekit.recipe import load_recipe
from edgekit.results import BuildResult
from edgekit.runtimes.browser_runtime import BROWSER_VARIABLE, find_browser
from edgekit.runtimes.npm_packages import LOCATION_VARIABLE
from tests.pico import pico_encoder, pico_texts
from tests.reporting.examples import quality
from tests.reporting.language_examples import with_parts

PEERS = Path(__file__).parents[1] / ".peers" / "node_modules"
RECIPE = """
name = "pico"
seed = 3
[task]
labels = ["negative", "positive"]
max_length = 32
[teacher]
source = "encoder"
[data]
source = "reviews.csv"
validation = 0.2
test = 0.3
[[stage]]
kind = "finetune"
epochs = 15
learning_rate = 2e-3
precision = "float32"
[[stage]]
kind = "prune"
layers = 2
min_count = 1
[[stage]]
kind = "distill"
epochs = 10
learning_rate = 2e-3
precision = "float32"
[[stage]]
kind = "quantize"
[[export]]
format = "onnx"
targets = ["laptop-x86", "pixel-8"]
[bench]
min_seconds = 0.05
length = 16
scenario = "offline"
[budget]
p95_ms = 500.0
quality_drop = 0.5
"""


def make_recipe(directory: Path, text: str = RECIPE) -> Path:
    if not (directory / "encoder").exists():
        pico_encoder(directory / "encoder")
        texts, labels = pico_texts(240)
        names = ("negative", "positive")
        rows = "\n".join(f"{text},{names[label]}" for text, label in zip(texts, labels, strict=True))
        (directory / "reviews.csv").write_text(f"text,label\n{rows}\n")
    path = directory / "recipe.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, BuildResult]:
    root = tmp_path_factory.mktemp("build")
    return root, build(load_recipe(str(make_recipe(root))), root / "out")


def test_a_build_that_meets_its_budget_leaves_everything(built):
    root, result = built
    assert result.failures == []
    assert result.exit_code == 0
    assert [stage.kind for stage in result.stages] == ["finetune", "prune", "distill", "quantize"]
    assert result.stages[-1].quality.accuracy > 0.8, "the pico task is learnable"
    assert {export.target for export in result.exports} == {"laptop-x86", "pixel-8"}
    for export in result.exports:
        bundle = Artifact.open(root / "out" / export.bundle, kind="bundle")
        assert bundle.lineage.stage == "package"
        assert bundle.lineage.inputs["model"].lineage.stage == "export"
        modes = {path.stat().st_mode & 0o777 for path in bundle.path.rglob("*") if path.is_file()}
        assert modes == {(root / "recipe.toml").stat().st_mode & 0o777}
    for name in ("build.json", "report.html", "report.md", "junit.xml"):
        assert (root / "out" / name).stat().st_size > 0
    assert not list((root / "out" / "work").glob("*"))


def test_each_export_is_timed_in_turn_with_the_teachers_own_float32_export(built):
    root, result = built
    teacher = next(stage for stage in result.stages if stage.kind == "finetune").digest
    for export in result.exports:
        compared, shipped = export.teacher_comparison, Artifact.open(root / "out" / export.bundle)
        assert compared.first.model_digest == shipped.lineage.inputs["model"].digest
        timed = next(
            artifact
            for artifact in map(Artifact.open, (root / "out" / "artifacts").glob("export-????????????????"))
            if artifact.digest == compared.second.model_digest
        )
        assert timed.lineage.inputs["model"].digest == teacher
        assert timed.lineage.config["precision"] == "float32"
        assert compared.rounds >= 12
        assert export.measurement.under_load.scenario == "offline"
        assert compared.first.under_load is None, "models are compared call by call"
    assert "the teacher&#39;s float32 export" in (root / "out" / "report.html").read_text()


def test_targets_that_share_file_and_scenario_share_one_measurement(built):
    """The laptop's p95 limit can be decided here, the phone's cannot: that is no reason to measure twice."""
    root, result = built
    laptop, phone = result.exports
    assert (laptop.measured_on_target, phone.measured_on_target) == (True, False)
    assert laptop.measurement == phone.measurement
    assert laptop.float_comparison == phone.float_comparison
    made = list((root / "out" / "artifacts").glob("bench-????????????????"))
    assert len(made) == 2, "in turn with its own float32 export, and with the teacher's"


def test_an_undecided_limit_is_measured_once_a_build_and_again_in_the_next(built, tmp_path, monkeypatch):
    root, _ = built
    shutil.copytree(root, tmp_path / "again")
    monkeypatch.setattr("edgekit.export_chain._is_decided", lambda measured, config: False)
    benches = []

    def listen(event: Event) -> None:
        if event.stage == "bench" and event.kind in ("stage-started", "stage-cached"):
            benches.append(event.kind)

    laptop, phone = build(
        load_recipe(str(tmp_path / "again" / "recipe.toml")), tmp_path / "again" / "out", events=listen
    ).exports
    assert benches == ["stage-started", "stage-started", "stage-cached", "stage-cached"]
    assert laptop.measurement == phone.measurement
    assert laptop.teacher_comparison == phone.teacher_comparison


def test_every_step_is_listed_once_in_the_order_that_it_ran(built):
    _, result = built
    ran = [(step.kind, step.of) for step in result.steps]
    assert ran[:4] == [("prepare", ""), ("import", ""), ("finetune", "import"), ("evaluate", "finetune")]
    assert ran.index(("finetune", "import")) < ran.index(("capture", "finetune")) < ran.index(("distill", "prune"))
    assert ran[-1] == ("package", "export of quantize")
    assert ("bench", "export of quantize against export of finetune in float32") in ran
    assert {"export", "check", "evaluate", "bench", "package"} <= {kind for kind, _ in ran}
    assert len({step.digest for step in result.steps}) == len(ran)
    assert all(not step.cached for step in result.steps)


def test_build_json_has_the_published_shape(built):
    root, _ = built
    values = json.loads((root / "out" / "build.json").read_text())
    assert values["schema"] == 1
    assert (values["name"], values["seed"], values["exit_code"]) == ("pico", 3, 0)
    for stage in values["stages"]:
        assert {"kind", "seconds", "cached"} <= set(stage)
        assert 0 <= stage["quality"]["accuracy"] <= 1
    for export in values["exports"]:
        assert {"format", "target", "bytes"} <= set(export)
        assert {"max_abs_diff", "label_agreement"} <= set(export["parity"])
        assert {"runtime", "threads", "p50_ms", "p95_ms", "peak_rss_bytes"} <= set(export["measurement"])
        assert export["budget"]["met"] is True
        assert export["budget"]["checks"]


def test_the_last_line_of_a_build_tells_its_exit_code_and_bundles(built, capsys):
    root, result = built
    assert run(["build", str(root / "recipe.toml"), "--out", str(root / "out"), "--json"]) == result.exit_code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    last.pop("time")
    values = {"exit_code": 0, "exports": 2, "bundles": 2}
    assert last == {"kind": "build-finished", "text": str(root / "out"), "values": values}


def test_a_phone_is_never_given_a_laptops_latency(built):
    _, result = built
    phone = next(export for export in result.exports if export.target == "pixel-8")
    latency = next(check for check in phone.budget.checks if check.name == "p95_ms")
    assert latency.status == "not-measured"
    assert phone.estimates


def test_an_unchanged_rebuild_runs_no_stage(built):
    root, first = built
    events: list[Event] = []
    again = build(load_recipe(str(make_recipe(root))), root / "out", events=events.append)
    assert [event.stage for event in events if event.kind == "stage-started"] == []
    assert all(stage.cached for stage in again.stages)
    assert again.exports == first.exports
    assert [stage.digest for stage in again.stages] == [stage.digest for stage in first.stages]


def test_a_changed_export_does_not_retrain(built):
    root, _ = built
    events: list[Event] = []
    text = RECIPE.replace('format = "onnx"', 'format = "onnx"\nprecision = "float16"')
    result = build(load_recipe(str(make_recipe(root, text))), root / "out", events=events.append)
    started = {event.stage for event in events if event.kind == "stage-started"}
    assert result.exit_code == 0
    assert started.isdisjoint({"prepare", "import", "finetune", "prune", "distill", "capture", "quantize"})
    assert "export" in started


def test_failed_parity_exits_3_and_bundles_nothing(built):
    root, _ = built
    text = RECIPE + "\n[parity]\nmax_abs_diff = 1e-30\n"
    result = build(load_recipe(str(make_recipe(root, text))), root / "out")
    assert result.exit_code == 3
    assert any("parity" in failure for failure in result.failures)
    assert all(export.bundle is None for export in result.exports)
    assert not list((root / "out" / "bundles").glob("pico-*")), "an older bundle must not pose as this build's"
    assert json.loads((root / "out" / "build.json").read_text())["exit_code"] == 3


def test_missed_budget_exits_1_and_names_each_miss(built):
    root, _ = built
    text = RECIPE.replace("p95_ms = 500.0", "p95_ms = 500.0\nfile_bytes = 1000")
    result = build(load_recipe(str(make_recipe(root, text))), root / "out")
    assert result.exit_code == 1
    misses = [failure for failure in result.failures if "file_bytes" in failure]
    assert len(misses) == 2, "one for each target"
    assert all(export.bundle is None for export in result.exports)


def test_a_killed_build_resumes_to_the_same_weights(built):
    root, first = built
    command = [
        sys.executable,
        "-m",
        "edgekit.cli",
        "build",
        str(make_recipe(root)),
        "--out",
        str(root / "killed"),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        event = json.loads(line)
        if event["kind"] == "progress" and event.get("stage") == "distill" and event.get("completed", 0) > 3:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = build(load_recipe(str(make_recipe(root))), root / "killed")
    assert resumed.exit_code == 0
    assert [stage.cached for stage in resumed.stages] == [True, True, False, False]
    assert [stage.digest for stage in resumed.stages] == [stage.digest for stage in first.stages]


def test_a_bundle_loads_and_an_altered_one_does_not(built):
    root, _ = built
    build(load_recipe(str(make_recipe(root))), root / "out")
    bundle = root / "out" / "bundles" / "pico-laptop-x86"
    prediction = edgekit.load(bundle).predict(["a superb charming film"])[0]
    assert prediction.label == "positive"
    labels = bundle / "labels.json"
    labels.write_text(labels.read_text() + " ")
    with pytest.raises(edgekit.EdgekitError, match=r"labels\.json"):
        edgekit.load(bundle)


def test_a_build_that_would_distil_from_a_head_that_nothing_trained_stops_after_the_import(tmp_path):
    finetune = RECIPE.index("[[stage]]")
    text = RECIPE[:finetune] + RECIPE[RECIPE.index("[[stage]]", finetune + 1) :]
    events: list[Event] = []
    with pytest.raises(ModelError, match=r"distill: .* never trained, expected .* 'finetune' at the start"):
        build(load_recipe(str(make_recipe(tmp_path, text))), tmp_path / "out", events=events.append)
    assert [event.stage for event in events if event.kind == "stage-started"] == ["prepare", "import"]


def test_the_metric_of_a_stage_is_told_by_its_own_name():
    heard: list[Event] = []
    _report_quality(heard.append, "distill", with_parts(37.6))
    _report_quality(heard.append, "distill", quality(0.84))
    _report_quality(heard.append, "finetune", quality(0.84, teacher=False))
    language, compared, alone = (event.values for event in heard)
    assert list(language) == ["perplexity", "perplexity_ratio", "perplexity_test", "perplexity_news"]
    assert language["perplexity"] == 37.6
    assert compared == {"accuracy": 0.84, "accuracy_change": pytest.approx(0.001)}
    assert alone == {"accuracy": 0.84}


def test_every_format_of_a_classifier_is_verified_and_bundled_from_the_same_codes(built):
    for package in ("openvino", "litert_torch", "executorch"):
        pytest.importorskip(package)
    root, _ = built
    more = RECIPE.replace('targets = ["laptop-x86", "pixel-8"]', 'targets = ["laptop-x86"]')
    others = dict.fromkeys(("openvino", "litert", "executorch"), "laptop-x86")
    for name, target in {"ort": "pixel-8", **others}.items():
        # the Python runtime of ExecuTorch imports torch, which an app does not
        room = "\n[export.budget]\npeak_memory_bytes = 600000000" if name == "executorch" else ""
        more = more.replace("[bench]", f'[[export]]\nformat = "{name}"\ntargets = ["{target}"]{room}\n[bench]')
    (root / "formats.toml").write_text(more)
    shutil.copytree(root / "out", root / "out-formats")  # trained already
    result = build(load_recipe(str(root / "formats.toml")), root / "out-formats")
    assert result.exit_code == 0
    found = {export.format: export for export in result.exports}
    assert set(found) == {"onnx", "ort", *others}
    for name in others:
        assert found[name].parity.runtime.startswith(f"{name} ")
    for name, export in found.items():
        bundle = root / "out-formats" / export.bundle
        assert bundle.name.endswith("" if name == "onnx" else f"-{name}")
        classifier = edgekit.load(bundle)
        assert classifier.manifest.format == name
        shown = usage(bundle, "a fine film")
        expected = classifier.predict(["a fine film"])[0].scores
        assert shown == {label: f"{score:.4f}" for label, score in expected.items()}


@pytest.fixture
def for_browsers(built, monkeypatch):
    """A recipe that ships to a browser, beside the build whose stages it shares."""
    root, _ = built
    monkeypatch.setenv(LOCATION_VARIABLE, str(PEERS))
    text = RECIPE.replace('targets = ["laptop-x86", "pixel-8"]', 'runtime = "onnxruntime-web"\ntargets = ["browser"]')
    text = text.replace('scenario = "offline"', "pairs = 5\nmin_samples = 5")
    (root / "browser.toml").write_text(text)
    return root


@pytest.mark.runtime
@pytest.mark.skipif(find_browser() is None or not PEERS.is_dir(), reason="needs Chromium and `make peers`")
def test_a_browsers_export_is_verified_and_measured_in_chromium(for_browsers):
    out = for_browsers / "out-browser"
    shutil.copytree(for_browsers / "out", out)  # trained already
    result = build(load_recipe(str(for_browsers / "browser.toml")), out)
    assert result.exit_code == 0
    (export,) = result.exports
    assert re.fullmatch(r"onnxruntime-web \S+ in \w+ [\d.]+", export.parity.runtime)
    assert export.measurement.runtime == "onnxruntime-web"
    assert export.measurement.page_bytes > 0
    assert not export.measured_on_target, "no machine calls itself wasm32"
    classifier = edgekit.load(out / export.bundle)
    assert classifier.manifest.versions.runtime == "onnxruntime-web"
    assert classifier.predict(["a fine film"])[0].label in classifier.manifest.labels


def test_without_a_browser_its_export_is_refused_before_anything_is_trained(for_browsers, monkeypatch):
    monkeypatch.setenv(BROWSER_VARIABLE, "/no/browser")
    with pytest.raises(EnvironmentLacksError, match=r"runtime 'onnxruntime-web' .* apt-get install chromium"):
        build(load_recipe(str(for_browsers / "browser.toml")), for_browsers / "out-none")


def usage(bundle: Path, text: str) -> dict[str, str]:
    """Returns what the bundle's own example prints for `text`: label to score."""
    command = [sys.executable, "-I", str(bundle / "usage.py"), text]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=bundle.parent)
    return dict(line.split("\t") for line in ran.stdout.splitlines())
