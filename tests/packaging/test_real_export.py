"""A bundle of a real export: what an app runs is what torch computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.exporters.stage import ExportConfig, export
from edgekit.models.source import load_model
from edgekit.packaging.bundle import open_bundle, verify_bundle
from edgekit.packaging.stage import PackageConfig, package
from edgekit.quantization.stage import QuantizeConfig, quantize
from tests.packaging.examples import facts
from tests.pico import pico_model_artifact

TEXTS = ["a superb, moving film", "dull and tedious", "", "\U0001f600 caf\u00e9", "slow " * 100]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A pico model and the bundle of its export for a phone."""
    directory = tmp_path_factory.mktemp("real")
    model = pico_model_artifact(directory)
    exported = export(StageInputs(model=model), ExportConfig(), StageContext(directory / "export"))
    config = PackageConfig.model_validate({"target": "pixel-8", "name": "reviews", "facts": facts(exported)})
    return model, package(StageInputs(model=exported), config, StageContext(directory / "bundle"))


def test_predictions_are_torchs(made: tuple[Artifact, Artifact]) -> None:
    import torch

    model, bundle = made
    loaded = load_model(model)
    for text, prediction in zip(TEXTS, open_bundle(bundle.path).predict(TEXTS), strict=True):
        batch = loaded.tokenizer(text, truncation=True, max_length=loaded.task.max_length, return_tensors="pt")
        with torch.no_grad():
            expected = loaded.model(**batch).logits.softmax(-1)[0].tolist()
        assert list(prediction.scores.values()) == pytest.approx(expected, abs=1e-5)


def test_usage_example_runs_on_it(made: tuple[Artifact, Artifact]) -> None:
    _, bundle = made
    script = bundle.path / "usage.py"
    ran = subprocess.run([sys.executable, "-I", str(script), TEXTS[0]], capture_output=True, text=True, check=True)
    scores = open_bundle(bundle.path).predict(TEXTS[:1])[0].scores
    assert ran.stdout.splitlines() == [f"{label}\t{score:.4f}" for label, score in scores.items()]


def test_usage_example_of_an_executorch_file_runs_on_it(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    student = quantize(
        StageInputs(model=pico_model_artifact(tmp_path, layers=1)), QuantizeConfig(), StageContext(tmp_path / "student")
    )
    exported = export(
        StageInputs(model=student), ExportConfig(format="executorch"), StageContext(tmp_path / "executorch")
    )
    parity = facts(exported).parity.model_copy(update={"runtime": "executorch 1.5.1"})
    settings = {"target": "laptop-x86", "name": "reviews", "facts": facts(exported, parity=parity)}
    config = PackageConfig.model_validate(settings)
    bundle = package(StageInputs(model=exported), config, StageContext(tmp_path / "bundle"))
    command = [sys.executable, "-I", str(bundle.path / "usage.py"), TEXTS[0]]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    scores = open_bundle(bundle.path).predict(TEXTS[:1])[0].scores
    assert ran.stdout.splitlines() == [f"{label}\t{score:.4f}" for label, score in scores.items()]
    assert "pip install 'executorch>=1.5.1' tokenizers" in (bundle.path / "MODEL_CARD.md").read_text()


def test_it_verifies_and_names_every_input_of_the_model(made: tuple[Artifact, Artifact]) -> None:
    _, bundle = made
    manifest = verify_bundle(bundle.path).manifest
    assert manifest.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    kotlin = (bundle.path / "usage.kt").read_text()
    assert 'listOf("input_ids", "attention_mask", "token_type_ids").associateWith' in kotlin
    assert 'addConfigEntry("session.intra_op.allow_spinning", "0")' in kotlin
