"""The model card says what is known, marks what is only estimated, and survives hostile names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgekit.packaging import phone
from edgekit.packaging.facts import BundleFacts
from edgekit.packaging.manifest import Manifest, read_manifest
from edgekit.packaging.model_card import CardTexts, lineage_steps, render_card
from tests.packaging.examples import target
from tests.packaging.test_stage import bundle


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(bundle(tmp_path, target("phone")).path)


def test_front_matter_is_yaml_that_hubs_read(manifest: Manifest) -> None:
    front = yaml.safe_load(render_card(manifest, CardTexts(license="Apache-2.0")).split("---\n")[1])
    assert front["license"] == "Apache-2.0"
    assert front["pipeline_tag"] == "text-classification"
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.84}]


def test_every_section_is_there(manifest: Manifest) -> None:
    card = render_card(manifest, CardTexts("Tells good from bad.", "MIT"))
    headings = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert headings == [
        "How to use it",
        "Quality",
        "Measurements",
        "How it was made",
        "Data",
        "Limits",
        "Licence",
    ]
    assert "Tells good from bad." in card
    assert "| recall of `negative` | 85.0 % | 80.0 % to 88.0 % |" in card
    assert "reviews.csv" in card
    assert "come from `pkg:teacher/model`" in card


def test_anothers_machine_is_named_and_estimates_are_marked(manifest: Manifest) -> None:
    card = render_card(manifest, CardTexts())
    assert "Measured on Intel(R) Xeon(R)" in card
    assert "that machine's figures, not a some-phone's" in card
    assert "> **Estimate, not measured**: latency on some-phone ~ 2 to 8 ms" in card
    assert "not stated" in card


def test_nothing_is_claimed_that_was_not_found(manifest: Manifest) -> None:
    card = render_card(manifest.model_copy(update={"facts": BundleFacts()}), CardTexts())
    assert "Not measured on the exported file." in card
    assert "p50" not in card


def test_lineage_runs_from_the_source_to_the_export(manifest: Manifest) -> None:
    assert [step.lineage.stage for step in lineage_steps(manifest.lineage)] == ["import", "distill", "export"]


def test_hostile_labels_break_neither_table_nor_kotlin(manifest: Manifest) -> None:
    hostile = manifest.model_copy(update={"labels": ["a|b", '"${x}"\n', "`<i>`"]})
    card = render_card(hostile, CardTexts())
    assert "`a\\|b`" in card
    assert "<i>" not in card
    kotlin = phone.app_files(hostile)["usage.kt"]
    assert 'listOf("a|b", "\\"\\${x}\\"\\n", "`<i>`")' in kotlin
