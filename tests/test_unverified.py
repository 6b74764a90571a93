"""Builds with a format that nothing here runs: no bundle by default, and a marked one where the recipe allows it."""

from __future__ import annotations

import json
import platform
from xml.etree import ElementTree

import pytest

import edgekit
from edgekit.errors import EnvironmentLacksError, RecipeError
from edgekit.events import Event
from edgekit.packaging.bundle import verify_bundle
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.results import Unverified
from tests.pico import pico_classifier, pico_texts
from tests.test_built_in_targets import RECIPE

pytestmark = pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")

EXPORT = '\n[[export]]\nformat = "coreml"\ntargets = ["iphone-15"]\n'
ALLOWED = f'{EXPORT}unverified = "allow"\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("coremltools")
    root = tmp_path_factory.mktemp("unverified")
    pico_classifier(root / "teacher", layers=1)
    texts, labels = pico_texts(60)
    names = ("negative", "positive")
    lines = [f'"{text}",{names[label]}' for text, label in zip(texts, labels, strict=True)]
    (root / "reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return root


def run(root, export, events=lambda event: None):
    (root / "recipe.toml").write_text(RECIPE + export)
    return build(load_recipe(str(root / "recipe.toml")), root / "out", events=events)


def test_it_is_not_bundled_and_the_build_says_that_it_is_unverified(root):
    heard: list[Event] = []
    result = run(root, EXPORT, heard.append)
    (export,) = result.exports
    assert result.exit_code == 4
    assert isinstance(export.parity, Unverified)
    assert export.bundle is None
    assert list((root / "out").glob("bundles/*")) == []
    assert any("coreml will be unverified and not bundled" in event.text for event in heard)
    (failure,) = result.failures
    assert failure.startswith("coreml for iphone-15: parity: Unverified under coreml: Core ML runs on Apple's systems")
    assert "so nothing ships" in (root / "out" / "report.md").read_text()


def test_a_recipe_may_allow_a_bundle_which_is_marked_everywhere(root):
    heard: list[Event] = []
    result = run(root, ALLOWED, heard.append)
    (export,) = result.exports
    assert result.exit_code == 4  # never 0: nobody has run it
    assert export.bundle == "bundles/pico-iphone-15-coreml-unverified"
    assert any("unverified and bundled all the same" in event.text for event in heard)
    assert {check.name: check.status for check in export.budget.checks} == {
        "file_bytes": "met",
        "peak_memory_bytes": "not-measured",
        "p95_ms": "not-measured",
        "quality_drop": "not-measured",
    }
    bundle = root / "out" / export.bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["unverified"].startswith("Core ML runs on Apple's systems alone")
    assert manifest["facts"]["parity"]["passed"] is False
    assert manifest["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "# pico for iphone-15 (UNVERIFIED)" in card
    assert "verify_on_mac.py" in card
    assert {"model.mlpackage", "test_vectors.json", "verify_on_mac.py"} <= {file.name for file in bundle.iterdir()}
    assert any("UNVERIFIED" in line for line in verify_bundle(bundle).checked)
    with pytest.raises(EnvironmentLacksError, match="Core ML runs on Apple's systems alone"):
        edgekit.load(bundle)
    report = (root / "out" / "report.md").read_text()
    assert "unverified" in report
    assert "allows bundles that are UNVERIFIED" in report
    cases = ElementTree.parse(root / "out" / "junit.xml").getroot().iter("failure")
    assert "unverified" in {case.get("type") for case in cases}


def test_what_runs_here_may_not_be_left_unverified(root):
    (root / "wrong.toml").write_text(RECIPE + ALLOWED.replace("coreml", "onnx"))
    with pytest.raises(RecipeError, match="found 'allow' for onnx, expected it for coreml alone"):
        load_recipe(str(root / "wrong.toml"))


def test_a_target_without_core_ml_is_refused_by_name(root):
    (root / "wrong.toml").write_text(RECIPE + EXPORT.replace("iphone-15", "pixel-8"))
    with pytest.raises(RecipeError, match="found 'coreml', which 'pixel-8' does not ship"):
        load_recipe(str(root / "wrong.toml"))
