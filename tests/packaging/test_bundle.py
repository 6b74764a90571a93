"""Bundles open, predict, and refuse to when anything in them was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgekit.artifact import DESCRIPTOR, Lineage, artifact_digest, lineage_digest
from edgekit.errors import ArtifactError, CorruptArtifactError, UsageError
from edgekit.packaging.bundle import open_bundle, read_vectors, verify_bundle
from tests.packaging.examples import LABELS, MAX_LENGTH, onnx_artifact
from tests.packaging.test_stage import bundle

TEXTS = ["A fine, moving film.", "dull", "", "boring " * 100, "\U0001f600 \u6620\u753b"]


def test_predictions_are_the_runtimes(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    classifier = open_bundle(made.path)
    session = onnxruntime.InferenceSession(str(made.path / "onnx" / "model.onnx"))
    for text, prediction in zip(TEXTS, classifier.predict(TEXTS), strict=True):
        ids = np.array([classifier._tokenizer.encode(text).ids[:MAX_LENGTH]], dtype=np.int64)
        if text != TEXTS[3]:  # cut texts keep their last special token, which this slice does not
            logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
            assert prediction.label == LABELS[int(logits.argmax())]
            assert np.log(prediction.scores["positive"] / prediction.scores["negative"]) == pytest.approx(
                logits[1] - logits[0], abs=1e-5
            )
        assert sum(prediction.scores.values()) == pytest.approx(1)
        assert prediction.score == max(prediction.scores.values())


def test_prediction_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    classifier = open_bundle(bundle(tmp_path).path)
    assert classifier.predict(TEXTS) == [classifier.predict([text])[0] for text in TEXTS]
    assert classifier.predict([]) == []


def test_a_single_string_is_not_taken_for_letters(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"predict\(\[text\]\)"):
        open_bundle(bundle(tmp_path).path).predict("fine")


def test_a_list_is_not_taken_for_a_pair_of_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="logits: found a list, expected one string"):
        open_bundle(bundle(tmp_path).path).logits(["fine", "bad"])


@pytest.mark.parametrize(
    "name", ["onnx/model.onnx", "tokenizer.json", "labels.json", "manifest.json", "usage.py", "tokenizer_vectors.json"]
)
@pytest.mark.parametrize("check", [verify_bundle, open_bundle])
def test_an_altered_file_is_refused_by_name(tmp_path: Path, name: str, check: Callable[[Path], object]) -> None:
    made = bundle(tmp_path)
    file = made.path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CorruptArtifactError, match=name):
        check(made.path)


def test_truncated_missing_and_added_files_are_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    model = made.path / "onnx" / "model.onnx"
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    with pytest.raises(CorruptArtifactError, match=r"model\.onnx.*bytes"):
        open_bundle(made.path)
    model.write_bytes(content)
    (made.path / "usage.py").rename(made.path / "moved.py")
    with pytest.raises(CorruptArtifactError, match=r"usage\.py: missing"):
        open_bundle(made.path)
    (made.path / "moved.py").rename(made.path / "usage.py")
    (made.path / "extra.bin").write_bytes(b"x")
    with pytest.raises(CorruptArtifactError, match=r"extra\.bin"):
        open_bundle(made.path)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("labels.json", lambda text: text.replace("negative", "positively"), "labels.json"),
        ("config.json", lambda text: text.replace("negative", "positively"), "id2label"),
        ("tokenizer_vectors.json", lambda text: text.replace("[\n   2", "[\n   3"), "encodes"),
        ("tokenizer_vectors.json", lambda text: "[]", "holds no text"),
    ],
)
def test_files_that_disagree_are_refused_even_when_every_digest_was_forged(
    tmp_path: Path, name: str, change: Callable[[str], str], found: str
) -> None:
    made = bundle(tmp_path)
    file = made.path / name
    before = file.read_text()
    assert change(before) != before
    file.write_text(change(before))
    forge_digests(made.path, name)
    with pytest.raises(CorruptArtifactError, match=found):
        verify_bundle(made.path)


def test_manifest_that_lists_other_files_is_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    manifest = json.loads((made.path / "manifest.json").read_text())
    del manifest["files"]["usage.py"]
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    forge_digests(made.path, "manifest.json")
    with pytest.raises(CorruptArtifactError, match=r"files\.usage\.py"):
        open_bundle(made.path)


def test_lineage_that_differs_from_the_manifests_is_refused_even_when_its_digest_was_forged(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    descriptor = json.loads((made.path / DESCRIPTOR).read_text())
    descriptor["lineage"]["inputs"]["model"]["lineage"]["seed"] = 99
    descriptor["lineage_digest"] = lineage_digest(Lineage.model_validate(descriptor["lineage"]))
    (made.path / DESCRIPTOR).write_text(json.dumps(descriptor))
    with pytest.raises(CorruptArtifactError, match=r"artifact\.json: lineage: .* in manifest\.json"):
        open_bundle(made.path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact\.json"):
        open_bundle(tmp_path)
    with pytest.raises(ArtifactError, match="expected 'bundle'"):
        open_bundle(onnx_artifact(tmp_path / "export").path)


def test_vectors_hold_the_texts_that_tokenizers_disagree_on(tmp_path: Path) -> None:
    vectors = read_vectors(bundle(tmp_path).path)
    texts = "".join(vector.text for vector in vectors)
    assert any(vector.text == "" for vector in vectors)
    assert "\U0001f600" in texts
    assert "\u8fd9" in texts
    assert max(len(vector.input_ids) for vector in vectors) == MAX_LENGTH


def forge_digests(directory: Path, name: str) -> None:
    """Rewrites manifest and descriptor so that every digest fits the altered file."""
    record = {
        "sha256": hashlib.sha256((directory / name).read_bytes()).hexdigest(),
        "bytes": (directory / name).stat().st_size,
    }
    manifest_file = directory / "manifest.json"
    if name != "manifest.json":
        manifest = json.loads(manifest_file.read_text())
        manifest["files"][name] = record
        manifest["total_bytes"] = sum(entry["bytes"] for entry in manifest["files"].values())
        manifest_file.write_text(json.dumps(manifest))
        forge_digests(directory, "manifest.json")
    descriptor = json.loads((directory / DESCRIPTOR).read_text())
    descriptor["files"][name] = record
    from edgekit.artifact import FileRecord

    records = {key: FileRecord(**entry) for key, entry in descriptor["files"].items()}
    descriptor["digest"] = artifact_digest("bundle", records)
    (directory / DESCRIPTOR).write_text(json.dumps(descriptor))
