"""The stage `autotune` on pico models: what it measures, what it refuses, and what a build makes of it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

import edgekit
from edgekit.artifact import Artifact
from edgekit.benchmarking.verdict import judge
from edgekit.cli import run
from edgekit.errors import RecipeError, UsageError
from edgekit.events import Event
from edgekit.exporters.description import read_description
from edgekit.exporters.linear_kernels import possible_lowerings
from edgekit.exporters.lowering_choice import LoweringChoice, TriedLowering, read_choice
from edgekit.exporters.parity import read_parity
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.results import Conditions, Interval, Sweep, TurnRatio
from edgekit.runtimes.npm_packages import LOCATION_VARIABLE
from edgekit.tuning.stage import AutotuneConfig
from edgekit.tuning.table import doubts, show_choice
from edgekit.tuning.tuner import judge_lowerings
from tests.pico import pico_data_artifact, pico_encoder, pico_model_artifact, pico_texts, publish_model
from tests.pico_decoders import pico_decoder
from tests.reporting.examples import measurement
from tests.tuning.choices import made_up_choice

QUICK = {"min_samples": 5, "min_seconds": 0.01, "pairs": 5, "length": 8}
PEERS = Path(__file__).parents[2] / ".peers" / "node_modules"
NODE_RUNTIMES = ["onnxruntime-node", "onnxruntime-web-node"]

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (PEERS / "onnxruntime-node").is_dir(), reason="needs Node.js and `make peers`"
)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    return pico_model_artifact(tmp_path_factory.mktemp("floats") / "model", layers=1)


@pytest.fixture(scope="module")
def int8(floats, tmp_path_factory):
    return edgekit.quantize(floats, edgekit.QuantizeConfig(), out=tmp_path_factory.mktemp("int8") / "int8")


@pytest.fixture(scope="module")
def tuned(int8, tmp_path_factory):
    return edgekit.autotune(int8, AutotuneConfig(**QUICK), out=tmp_path_factory.mktemp("tuned") / "choice")


def test_every_way_of_every_shape_is_compared_with_torch_and_timed(tuned, int8):
    choice = read_choice(tuned)
    assert choice.model_digest == int8.digest
    assert choice.scenario.endswith("1 thread, 1 x 8 tokens")
    for linear in choice.linears:
        assert [each.lowering for each in linear.tried] == list(possible_lowerings(linear.shape.scheme, ""))
        usual, other = linear.tried
        assert (usual.ratio_p50, usual.refused, other.refused) == (None, None, None)
        assert min(usual.p50_ms, other.p50_ms, other.ratio_p50) > 0
        assert min(usual.samples, other.samples) >= QUICK["min_samples"]
        assert max(usual.difference, other.difference) < 2e-3
        assert other.ratio_interval.low <= other.ratio_p50 <= other.ratio_interval.high
        is_faster = other.ratio_interval.high < 1 / (1 + choice.margin)
        assert linear.chosen == (other.lowering if is_faster else usual.lowering)


@pytest.mark.parametrize(
    ("ratios", "chosen"),
    [
        ([(0.95, 0.93, 0.98), (1.2, 1.1, 1.3)], "n-bits-int8"),  # within the margin of 3 % and slower
        ([(0.8, 0.7, 0.96), (0.9, 0.85, 0.95)], "n-bits-float"),
        ([(0.9, 0.88, 0.92), (0.5, 0.4, 0.6)], "decoded"),
        ([(0.6, 0.4, 0.99), (1.0, 0.9, 1.1)], "n-bits-int8"),  # a promising ratio with too wide an interval
    ],
)
def test_another_way_is_chosen_only_where_it_is_faster_beyond_interval_and_margin(ratios, chosen):
    names = ["n-bits-int8", "n-bits-float", "decoded"]
    turns = []
    for place, (ratio, low, high) in enumerate(ratios, start=1):
        interval = Interval(low=low, high=high)
        verdict = judge(interval, 0.03)
        turns.append(
            TurnRatio(measurement=place, ratio_p50=ratio, ratio_interval=interval, margin=0.03, verdict=verdict)
        )
    sweep = Sweep(names=names, measurements=[measurement(1.0, 1000)] * 3, ratios=turns, rounds=12, sets=6)
    tried = [TriedLowering(lowering=name, difference=0.0) for name in names]
    timed, found, _ = judge_lowerings(tried, names, sweep)
    assert found == chosen
    assert [each.ratio_p50 for each in timed] == [None, *(ratio for ratio, _, _ in ratios)]


def test_linears_are_measured_as_the_export_joins_and_narrows_them(tuned):
    shapes = [(linear.shape.size, linear.modules) for linear in read_choice(tuned).linears]
    assert ("32 -> 64, one token", ["bert.encoder.layer.0.intermediate.dense"]) in shapes
    one = next(modules for size, modules in shapes if size == "32 -> 32, one token")
    assert "bert.pooler.dense" in one
    joined = [modules for size, modules in shapes if size in ("32 -> 64", "32 -> 96")]
    assert any("key+value" in modules[0] for modules in joined)


def test_an_export_takes_the_choice_and_passes_its_check(tuned, int8, tmp_path):
    export = edgekit.export(int8, lowering=tuned, out=tmp_path / "onnx")
    said = read_description(export.path)
    wanted = {
        name: row.chosen for row in read_choice(tuned).linears for joined in row.modules for name in parts(joined)
    }
    assert said.lowerings == wanted
    data = pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=8)
    assert read_parity(edgekit.check(export, config, reference=int8, data=data, out=tmp_path / "parity")).passed


def parts(joined: str) -> list[str]:
    """Returns the modules that `a.query+key` stands for."""
    prefix, _, names = joined.rpartition(".")
    return [f"{prefix}.{name}" for name in names.split("+")]


def test_the_command_prints_the_table_and_makes_the_same_kind_of_artifact(int8, tmp_path, capsys):
    words = ["autotune", str(int8.path), str(tmp_path / "choice"), "--length", "8", "--pairs", "5"]
    assert run([*words, "--min-seconds", "0.01", "--min-samples", "5", "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["stage"] == "autotune"
    assert last["lowering"] == json.loads(read_choice(Artifact.open(tmp_path / "choice")).model_dump_json())


def test_the_table_names_each_way_and_says_when_the_machine_was_busy(int8):
    choice = made_up_choice(int8, lambda shape: "decoded")
    written = io.StringIO()
    show_choice(choice, Console(file=written, width=120))
    text = written.getvalue()
    assert "8 bits by channel, dynamic-int8:" in text
    assert text.count("decoded") == text.count("dynamic-int8") - 1 == len(choice.linears)
    assert doubts(choice) == ""
    busy = Conditions(load_average_after=9.0, other_work_share=0.7)
    first = choice.linears[0].model_copy(update={"conditions": busy})
    said = doubts(choice.model_copy(update={"linears": [first, *choice.linears[1:]]}))
    assert said.startswith("The machine was not quiet while 1 of 1 were measured: at worst other work took 70")


def test_what_cannot_be_tuned_is_refused(floats, int8, tmp_path):
    with pytest.raises(UsageError, match="found no linear on codes, expected a quantized model"):
        edgekit.autotune(floats, AutotuneConfig(**QUICK), out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"found 'torch', which opens model; expected one that opens onnx"):
        edgekit.autotune(int8, AutotuneConfig(runtime="torch", **QUICK), out=tmp_path / "out")
    with pytest.raises(UsageError, match="'onnxruntimes' is unknown"):
        edgekit.autotune(int8, AutotuneConfig(runtime="onnxruntimes", **QUICK), out=tmp_path / "out")
    with pytest.raises(UsageError, match="threads: found 900, expected at most"):
        edgekit.autotune(int8, AutotuneConfig(threads=900, **QUICK), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoders_linears_are_measured_on_one_token_and_its_head_on_one(tmp_path):
    model = publish_model(pico_decoder("llama", layers=1, hidden_size=64, head_dim=16), tmp_path / "floats")
    student = edgekit.quantize(model, edgekit.QuantizeConfig(bits=4, group_size=32), out=tmp_path / "int4")
    config = AutotuneConfig(**{**QUICK, "length": None})
    tuned = edgekit.autotune(student, config, out=tmp_path / "choice")
    choice = read_choice(tuned)
    assert choice.length == 1
    assert [linear.modules for linear in choice.linears if linear.shape.single_token] == [["lm_head"]]
    edgekit.export(student, lowering=tuned, out=tmp_path / "onnx")  # compares the file with torch


@needs_node
@pytest.mark.runtime
@pytest.mark.parametrize("runtime", NODE_RUNTIMES)
def test_a_way_that_a_runtime_computes_otherwise_does_not_come_into_question(runtime, floats, tmp_path, monkeypatch):
    """WebAssembly does not round the input of 4-bit codes; the native build in Node does."""
    monkeypatch.setenv(LOCATION_VARIABLE, str(PEERS))
    scheme = edgekit.QuantizeConfig(bits=4, group_size=32, exclude=["*.dense"])
    student = edgekit.quantize(floats, scheme, out=tmp_path / "int4")
    tuned = edgekit.autotune(student, AutotuneConfig(runtime=runtime, **QUICK), out=tmp_path / "choice")
    for linear in read_choice(tuned).linears:
        refused = [each.lowering for each in linear.tried if each.refused is not None]
        assert refused == (["n-bits-int8"] if "web" in runtime else [])
        assert linear.chosen not in refused
    export, data = edgekit.export(student, lowering=tuned, out=tmp_path / "onnx"), pico_data_artifact(tmp_path / "data")
    config = edgekit.CheckConfig(rows=16, runtime=runtime)
    assert read_parity(edgekit.check(export, config, reference=student, data=data, out=tmp_path / "parity")).passed


RECIPE = """
name = "tuned"
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
kind = "quantize"
exclude = ["*.intermediate.dense", "*.output.dense"]
[[export]]
lowering = "measured"
targets = ["laptop-x86"]
[bench]
min_seconds = 0.05
pairs = 5
length = 8
[autotune]
min_samples = 5
min_seconds = 0.01
pairs = 5
[budget]
p95_ms = 5000.0
quality_drop = 1.0
"""


def write_recipe(directory: Path, text: str = RECIPE) -> Path:
    pico_encoder(directory / "encoder", layers=1)
    texts, labels = pico_texts(120)
    rows = "\n".join(f"{text},{('negative', 'positive')[label]}" for text, label in zip(texts, labels, strict=True))
    (directory / "reviews.csv").write_text(f"text,label\n{rows}\n")
    (directory / "recipe.toml").write_text(text)
    return directory / "recipe.toml"


def test_a_build_measures_once_and_ships_what_it_chose(tmp_path):
    recipe, events = load_recipe(str(write_recipe(tmp_path))), []
    first = build(recipe, tmp_path / "out", events=events.append)
    assert started(events).count("autotune") == 1
    assert first.failures == []
    export = first.exports[0]
    assert any("How its linears are written was measured: onnxruntime" in note for note in export.notes)
    assert "How its linears are written was measured" in (tmp_path / "out" / "report.md").read_text()
    lineage = Artifact.open(tmp_path / "out" / export.bundle).lineage.inputs["model"].lineage
    assert lineage.inputs["lowering"].lineage.stage == "autotune"
    assert ("autotune", "quantize") in [(step.kind, step.of) for step in first.steps]
    events.clear()
    again = build(recipe, tmp_path / "out", events=events.append)
    assert started(events) == []
    assert again.exports == first.exports


def started(events: list[Event]) -> list[str]:
    return [event.stage for event in events if event.kind == "stage-started"]


@pytest.mark.parametrize(
    "change",
    [
        ('kind = "quantize"\nexclude = ["*.intermediate.dense", "*.output.dense"]', 'kind = "prune"\nlayers = 1'),
        ('targets = ["laptop-x86"]', 'targets = ["laptop-x86"]\nprecision = "float32"'),
        ('targets = ["laptop-x86"]', 'targets = ["laptop-x86"]\nformat = "litert"'),
    ],
)
def test_a_recipe_that_has_nothing_to_measure_is_refused_before_it_runs(change, tmp_path):
    path = write_recipe(tmp_path, RECIPE.replace(*change))
    with pytest.raises(RecipeError, match=r"export\.0\.lowering: found 'measured', expected it for a quantized"):
        load_recipe(str(path))


def test_a_runtime_that_opens_whole_exports_is_refused(int8, tmp_path):
    config = AutotuneConfig(runtime="transformers.js", **QUICK)
    with pytest.raises(UsageError, match=r"found 'transformers.js', which opens whole exports"):
        edgekit.autotune(int8, config, out=tmp_path / "choice")


def test_a_choice_of_a_way_that_was_refused_is_no_choice(tuned):
    content = read_choice(tuned).model_dump(mode="json")
    linear = content["linears"][0]
    linear["tried"][0]["refused"], linear["chosen"] = "differs", linear["tried"][0]["lowering"]
    with pytest.raises(ValidationError, match="expected one that was tried and not refused"):
        LoweringChoice.model_validate(content)
