"""Every built-in target in a recipe: it gets a bundle, or the recipe is refused by name for a stated reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.artifact import Artifact
from edgekit.errors import RecipeError
from edgekit.packaging.bundle import verify_bundle
from edgekit.packaging.manifest import read_manifest
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.results import BuildResult
from edgekit.runtimes.generation import list_generation_runtimes
from edgekit.target import list_targets, load_target
from tests.pico import pico_classifier, pico_texts

RECIPE = """
name = "pico"
[task]
labels = ["negative", "positive"]
max_length = 32
[teacher]
source = "teacher"
[data]
source = "reviews.csv"
validation = 0.2
test = 0.3
[[stage]]
kind = "quantize"
[bench]
min_seconds = 0.05
length = 16
[budget]
p95_ms = 500.0
quality_drop = 1.0
"""
LANGUAGE = """
name = "pico"
[task]
kind = "causal-lm"
max_length = 96
[teacher]
source = "teacher"
[data]
source = "text.txt"
form = "text"
[[stage]]
kind = "prune"
layers = 2
"""
BUILT = [name for name in list_targets() if "onnxruntime" in {entry.name for entry in load_target(name).runtimes}]
REFUSED = [name for name in list_targets() if name not in BUILT]


def write_recipe(directory: Path, text: str, *targets: str, settings: str = "") -> str:
    """Writes a recipe with one export for these targets and returns its path."""
    names = ", ".join(f'"{name}"' for name in targets)
    path = directory / "recipe.toml"
    path.write_text(f"{text}[[export]]\ntargets = [{names}]\n{settings}")
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, BuildResult]:
    """One build for all targets whose runtime is here: they share the file."""
    root = tmp_path_factory.mktemp("targets")
    pico_classifier(root / "teacher")
    texts, labels = pico_texts(120)
    rows = "\n".join(f"{text},{('negative', 'positive')[label]}" for text, label in zip(texts, labels, strict=True))
    (root / "reviews.csv").write_text(f"text,label\n{rows}\n")
    return root, build(load_recipe(write_recipe(root, RECIPE, *BUILT)), root / "out")


@pytest.mark.parametrize("name", BUILT)
def test_a_target_gets_a_bundle_that_says_how_to_use_it(built, name):
    root, result = built
    export = next(export for export in result.exports if export.target == name)
    target = load_target(name)
    assert export.budget.met, export.budget
    directory = root / "out" / export.bundle
    verify_bundle(directory)
    manifest = read_manifest(directory)
    assert (manifest.target.form_factor, manifest.target.operating_system) == (
        target.form_factor,
        target.operating_system,
    )
    assert manifest.versions.runtime_minimum == target.runtime("onnxruntime").version
    card = (directory / "MODEL_CARD.md").read_text()
    how = {"android": "onnxruntime-android:", "ios": "onnxruntime-swift-package-manager"}
    assert how.get(target.operating_system, "python usage.py" if target.form_factor == "laptop" else "taskset") in card
    assert Artifact.open(directory).lineage.config["target"]["name"] == name


@pytest.mark.parametrize("name", BUILT)
def test_a_target_has_an_estimate_or_a_measurement_and_the_estimates_error(built, name):
    _, result = built
    export = next(export for export in result.exports if export.target == name)
    if export.measured_on_target:
        assert {check.estimate.unit for check in export.estimate_checks} >= {"ms"}
        assert export.estimates == []
    else:
        assert [estimate.unit for estimate in export.estimates] == ["ms", "bytes"]
        assert export.estimate_checks == []
        assert all(name in estimate.quantity for estimate in export.estimates)
    assert export.budget.checks


def test_this_machine_is_no_phone_and_no_board(built):
    _, result = built
    assert {export.target for export in result.exports if export.measured_on_target} <= {
        name for name in BUILT if load_target(name).form_factor == "laptop"
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_target_that_ships_another_runtime_is_read_when_that_is_named(tmp_path, name):
    ships = load_target(name).runtimes[0].name
    with pytest.raises(RecipeError, match=f"'{name}' does not ship\\. Did you mean '{ships}'"):
        load_recipe(write_recipe(tmp_path, RECIPE, name))
    assert (
        load_recipe(write_recipe(tmp_path, RECIPE, name, settings=f'runtime = "{ships}"\n')).exports[0].runtime == ships
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_target_whose_runtime_runs_no_language_model_here_is_refused_by_name(tmp_path, name):
    ships = load_target(name).runtimes[0].name
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, LANGUAGE, name))
    assert f"found 'onnxruntime', which '{name}' does not ship." in str(caught.value)
    every = ", ".join(runtime.name for runtime in load_target(name).runtimes)
    assert f"It ships: {every}. edgekit cannot run any of these here: leave the target out." in str(caught.value)
    with pytest.raises(RecipeError, match=f"found '{ships}' for '{name}', which edgekit cannot run for the task"):
        load_recipe(write_recipe(tmp_path, LANGUAGE, name, settings=f'runtime = "{ships}"\n'))


@pytest.mark.parametrize("name", list_targets())
@pytest.mark.parametrize("file_format", ["onnx", "gguf"])
def test_a_language_models_recipe_is_read_or_refused_by_name(tmp_path, name, file_format):
    path = write_recipe(tmp_path, LANGUAGE, name, settings=f'format = "{file_format}"\n')
    runtime = {"onnx": "onnxruntime", "gguf": "llama.cpp"}[file_format]
    if runtime in {entry.name for entry in load_target(name).runtimes}:
        assert runtime in list_generation_runtimes()
        assert load_recipe(path).targets[name].name == name
        return
    with pytest.raises(RecipeError, match=f"found '{runtime}', which '{name}' does not ship"):
        load_recipe(path)
