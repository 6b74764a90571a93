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
from tests.reporting.language_examples import language_build


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


def test_a_licence_that_nobody_stated_is_not_made_up(manifest: Manifest) -> None:
    card = render_card(manifest, CardTexts())
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    assert "write it here and as `license:` at the top, before you publish this" in card
    told = render_card(manifest, CardTexts(license="MIT"))
    assert "The licence of the weights: MIT." in told
    assert "before you publish" not in told


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


def test_a_language_models_card_tells_perplexity_and_speed(manifest: Manifest) -> None:
    found = language_build().exports[0]
    told = manifest.model_copy(update={"task": "causal-lm", "labels": [], "facts": BundleFacts.of(found)})
    card = render_card(told, CardTexts())
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "perplexity", "value": 38.9}]
    assert "on 41,200 tokens of `test + news`" in card
    assert "| perplexity | 38.9 | 37.4 to 40.4 |" in card
    assert "| perplexity on `news` | 43.6 | 42.1 to 45.1 |" in card
    assert "| perplexity over the teacher's | 1.45 | 1.41 to 1.49 |" in card
    assert "| KL from the teacher | 0.31 nats a token | |" in card
    assert "| same token as the teacher | 71.0 % | |" in card
    assert "under onnxruntime-genai 0.18.0 (shared-buffer), on 8,192 tokens of 16 texts" in card
    assert "Greedy text is equal for 61.5 of 64 tokens in the mean of 8 prompts." in card
    assert "| first token after 2,048 tokens | 6,505 ms | 6,375 to 6,635 |" in card
    assert "| decode after 64 tokens | 107 tokens/s | 106 to 108 |" in card
    assert "| decode over what memory bandwidth allows | 37.7 % | |" in card
    assert "that goes on writing a text" in card
    assert "nothing filters it" in card
    assert "accuracy" not in card
    assert "label" not in card.split("## Quality")[1]
