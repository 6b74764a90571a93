"""The stage `package`: what ships, what is refused, and that nothing is half-written."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import BudgetError, ParityError, UnsupportedError, UsageError
from edgekit.packaging.bundle import open_bundle, verify_bundle
from edgekit.packaging.manifest import read_manifest
from edgekit.packaging.platforms import platform_of
from edgekit.packaging.stage import BundleFacts, PackageConfig, package
from edgekit.results import BudgetCheck, BudgetResult, Emulation
from edgekit.target import RuntimeOnTarget, Target
from tests.packaging.examples import LABELS, facts, onnx_artifact, target

TEXT = "A fine, moving film."


def bundle(directory: Path, to: Target | None = None, **changes: object) -> Artifact:
    """Packages a pico export below `directory`."""
    model = onnx_artifact(directory / "export")
    config = PackageConfig(target=to or target(), name="reviews", license="Apache-2.0", facts=facts(model, **changes))
    return package(StageInputs(model=model), config, StageContext(directory / "bundle"))


def test_bundle_holds_everything_that_an_app_needs(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    export = Artifact.open(tmp_path / "export")
    assert {name: made.files[name] for name in export.files} == export.files
    added = {"labels.json", "manifest.json", "tokenizer_vectors.json", "MODEL_CARD.md", "usage.py"}
    assert set(made.files) == set(export.files) | added
    assert json.loads((made.path / "labels.json").read_text()) == LABELS
    verified = verify_bundle(made.path)
    assert verified.manifest.files.keys() == made.files.keys() - {"manifest.json"}
    texts = len(json.loads((made.path / "tokenizer_vectors.json").read_text()))
    assert verified.checked[:2] == [
        "manifest, lineage and labels agree",
        f"the tokenizer encodes {texts} texts as recorded",
    ]
    assert re.fullmatch(r"the model gives finite logits for [3-5] of them", verified.checked[2])


def test_manifest_names_digests_sizes_lineage_and_versions(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["files"]["onnx/model.onnx"]["sha256"] == made.files["onnx/model.onnx"].sha256
    assert manifest["total_bytes"] == sum(record["bytes"] for record in manifest["files"].values())
    assert manifest["lineage"]["lineage"]["inputs"]["model"]["lineage"]["stage"] == "distill"
    assert manifest["versions"]["opset"] == 21
    assert manifest["versions"]["runtime_minimum"] == "1.22.0"
    assert manifest["facts"]["measurement"]["machine"]["cpu"].startswith("Intel")
    assert manifest["facts"]["estimates"][0]["formula"]


def test_bundle_is_the_same_when_made_again(tmp_path: Path) -> None:
    assert bundle(tmp_path / "a").digest == bundle(tmp_path / "b").digest


def test_usage_example_runs_alone_and_agrees_with_the_classifier(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    script = made.path / "usage.py"
    lines = script.read_text().splitlines()
    assert len(lines) <= 20
    nodes = ast.walk(ast.parse(script.read_text()))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"json", "pathlib", "sys", "numpy", "onnxruntime", "tokenizers"}
    ran = subprocess.run(
        [sys.executable, "-I", str(script), TEXT], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    shown = dict(line.split("\t") for line in ran.stdout.splitlines())
    expected = open_bundle(made.path).predict([TEXT])[0].scores
    assert shown == {label: f"{score:.4f}" for label, score in expected.items()}


@pytest.mark.parametrize("form_factor", ["phone", "tablet", "laptop", "single-board", "server"])
def test_every_platform_says_how_to_use_it(tmp_path: Path, form_factor: str) -> None:
    made = bundle(tmp_path, target(form_factor))
    card = (made.path / "MODEL_CARD.md").read_text()
    assert "1.22.0" in card
    is_handheld = form_factor in ("phone", "tablet")
    assert ("usage.kt" in made.files) == is_handheld
    if is_handheld:
        assert "onnxruntime-android:1.22.0" in card
        assert "assets/reviews/" in card


@pytest.mark.parametrize("form_factor", ["phone", "tablet"])
def test_an_iphone_or_ipad_gets_swift_packages_and_no_kotlin(tmp_path: Path, form_factor: str) -> None:
    made = bundle(tmp_path, target(form_factor, operating_system="ios"))
    card = (made.path / "MODEL_CARD.md").read_text()
    assert "onnxruntime-swift-package-manager` (product `onnxruntime`,\n   1.22.0 or newer)" in card
    assert 'addConfigEntry(withKey: "session.' in card
    assert "edgekit did not compile this" in card
    assert "android" not in card
    assert "usage.kt" not in made.files


@pytest.mark.parametrize("threads", [1, 4])
def test_a_browser_gets_transformers_js_and_what_threads_ask_of_the_server(tmp_path: Path, threads: int) -> None:
    runtime = RuntimeOnTarget(name="onnxruntime", version="1.22.0", opset=21, ir_version=10, threads=threads)
    card = (bundle(tmp_path, target("browser", runtimes=[runtime])).path / "MODEL_CARD.md").read_text()
    assert f"numThreads = {threads};" in card
    assert ("Cross-Origin-Opener-Policy: same-origin" in card) == (threads > 1)


def test_a_phone_of_an_older_manifest_is_androids(tmp_path: Path) -> None:
    manifest = read_manifest(bundle(tmp_path, target("phone")).path)
    older = manifest.model_copy(update={"target": manifest.target.model_copy(update={"operating_system": None})})
    assert "usage.kt" in platform_of(older).app_files(older)


def test_nothing_ships_without_a_parity_check(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing ships unverified"):
        bundle(tmp_path, parity=None)
    assert_nothing_written(tmp_path)


def test_failed_parity_is_refused_with_its_reason(tmp_path: Path) -> None:
    good = facts(onnx_artifact(tmp_path / "other")).parity
    assert good is not None
    failed = good.model_copy(update={"passed": False, "failures": ["max_abs_diff 0.6 is above 0.05."]})
    with pytest.raises(ParityError, match=r"max_abs_diff 0\.6") as caught:
        bundle(tmp_path, parity=failed)
    assert caught.value.exit_code == 3
    assert_nothing_written(tmp_path)


def test_missed_budget_names_each_miss(tmp_path: Path) -> None:
    checks = [
        BudgetCheck(name="p95_ms", limit=1, value=2, status="missed", explanation="2 ms is above 1 ms."),
        BudgetCheck(name="quality_drop", limit=0.01, value=0, status="inconclusive", explanation="Wide."),
        BudgetCheck(name="file_bytes", limit=9, value=8, status="met", explanation="8 bytes."),
    ]
    with pytest.raises(BudgetError, match=r"p95_ms missed.*quality_drop inconclusive") as caught:
        bundle(tmp_path, budget=BudgetResult(met=False, checks=checks))
    assert "file_bytes" not in str(caught.value)
    assert_nothing_written(tmp_path)


def test_bundle_over_the_stores_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="allows at most 2,000"):
        bundle(tmp_path, target(bundle_bytes=2000))
    assert_nothing_written(tmp_path)


def test_model_that_the_targets_runtime_cannot_read_is_refused(tmp_path: Path) -> None:
    runtime = {"name": "onnxruntime", "version": "1.15.0", "opset": 19, "ir_version": 9}
    with pytest.raises(UnsupportedError, match=r"operator set 21.*at most 19"):
        bundle(tmp_path, target(runtimes=[runtime]))
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("evidence", "command"), [("parity", "check"), ("quality", "evaluate"), ("measurement", "bench")]
)
def test_evidence_about_another_model_or_none_is_refused(tmp_path: Path, evidence: str, command: str) -> None:
    model = onnx_artifact(tmp_path / "other", labels=["a", "b", "c"])
    other = getattr(facts(model), evidence)
    with pytest.raises(UsageError, match=f"{model.digest[:12]}, expected .* Run `edgekit {command}` on this model"):
        bundle(tmp_path / "a", **{evidence: other})
    unnamed = other.model_copy(update={"model_digest": ""})
    with pytest.raises(UsageError, match=r"\(not named\), expected"):
        bundle(tmp_path / "b", **{evidence: unnamed})
    assert_nothing_written(tmp_path / "a")


def test_model_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    config = PackageConfig(target=target(), facts=BundleFacts())
    expected = "expected an export: onnx or openvino or ort or litert or executorch or coreml or gguf"
    with pytest.raises(UsageError, match=expected):
        package(StageInputs(model=made), config, StageContext(tmp_path / "again"))


def test_config_names_the_nearest_target() -> None:
    with pytest.raises(ValidationError, match="is unknown"):
        PackageConfig.model_validate({"target": "laptop-x87"})


def test_config_reads_facts_from_files(tmp_path: Path) -> None:
    model = onnx_artifact(tmp_path / "export")
    given = facts(model)
    file = tmp_path / "facts.json"
    file.write_text(given.model_dump_json())
    assert PackageConfig.model_validate({"target": target(), "facts": str(file)}).facts == given
    with pytest.raises(ValidationError, match="expected one of: parity"):
        PackageConfig.model_validate({"target": target(), "facts": [str(model.path)]})


def assert_nothing_written(directory: Path) -> None:
    """Fails when a bundle or a part of one is there."""
    assert not [path.name for path in directory.iterdir() if "bundle" in path.name]


def test_a_check_on_an_emulated_processor_is_evidence_for_its_own_kind_alone(tmp_path: Path) -> None:
    model = onnx_artifact(tmp_path / "export")
    emulation = Emulation(
        device="qemu:cortex-a76",
        cpu="Cortex-A76",
        architecture="aarch64",
        cpu_features=["asimddp"],
        emulator="QEMU 7.2",
    )
    given = facts(model)
    assert given.parity is not None
    given = given.model_copy(update={"parity": given.parity.model_copy(update={"emulation": emulation})})
    config = PackageConfig(target=target(), name="reviews", license="Apache-2.0", facts=given)
    with pytest.raises(UsageError, match="found a parity check on an emulated processor, expected one on x86_64"):
        package(StageInputs(model=model), config, StageContext(tmp_path / "bundle"))
