"""Opens and verifies bundles: every digest, the manifest, the labels, the tokenizer and the model agree."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgekit.artifact import DESCRIPTOR, Artifact
from edgekit.errors import ArtifactError, CorruptArtifactError, UsageError
from edgekit.packaging.classifier import Classifier, open_classifier
from edgekit.packaging.language_bundle import LanguageBundle, check_language
from edgekit.packaging.manifest import MANIFEST_FILE, Manifest, read_manifest
from edgekit.results import TokenizerVector

LABELS_FILE = "labels.json"
VECTORS_FILE = "tokenizer_vectors.json"


def open_bundle(path: Path | str) -> Classifier:
    """Returns the classifier in a bundle, after verifying the digest of every file and that its parts agree.

    Raises:
        ArtifactError: there is no bundle.
        CorruptArtifactError: a file is missing, truncated, altered or was added, or two files disagree.
        UsageError: it holds a language model.
        EnvironmentLacksError: its runtime or tokenizers is not installed.
    """
    path = Path(path)
    manifest = _read_verified(path)
    if manifest.writing is not None:
        raise UsageError(
            f"{path}: holds a language model, expected a classifier. Open it with edgekit.load_language_model, or run "
            "the usage example in it."
        )
    return open_classifier(path, manifest)


def open_language_bundle(path: Path | str) -> LanguageBundle:
    """Returns the language model in a bundle, verified as `open_bundle` does; a session is opened when asked for.

    Raises:
        ArtifactError: there is no bundle.
        CorruptArtifactError: a file is missing, truncated, altered or was added, or two files disagree.
        UsageError: it holds a classifier.
    """
    path = Path(path)
    manifest = _read_verified(path)
    if manifest.writing is None:
        raise UsageError(f"{path}: holds a classifier, expected a language model. Open it with edgekit.load.")
    return LanguageBundle(path, manifest)


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle that passed every check."""

    manifest: Manifest
    checked: list[str]
    """What was checked beside the digests, each as a clause for people."""


def verify_bundle(path: Path | str) -> VerifiedBundle:
    """Checks a bundle as `open_bundle` does, then its tokenizer against its vectors and its model by running it.

    Raises:
        ArtifactError: there is no bundle.
        CorruptArtifactError: names the file that is missing, altered or disagrees with another.
        EnvironmentLacksError: the runtime or tokenizers is not installed.
    """
    path = Path(path)
    manifest = _read_verified(path)
    agree = "manifest and lineage agree" if manifest.writing is not None else "manifest, lineage and labels agree"
    return VerifiedBundle(manifest, [agree, *check_behaviour(path, manifest)])


def check_contents(directory: Path, manifest: Manifest) -> None:
    """Checks that the files name the same labels as the manifest, where the task has labels.

    Raises:
        CorruptArtifactError: naming the file that disagrees.
    """
    if manifest.writing is None:
        check_labels(directory, manifest)


def check_behaviour(directory: Path, manifest: Manifest) -> list[str]:
    """Checks that tokenizer, chat template and model do what was recorded, by running them; returns what was checked.

    Raises:
        CorruptArtifactError: naming the file and the first text that differs.
        EnvironmentLacksError: the runtime or tokenizers is not installed.
    """
    if manifest.writing is not None:
        return [check_tokenizer(directory, manifest), *check_language(LanguageBundle(directory, manifest))]
    if manifest.unverified is not None:
        return [check_tokenizer(directory, manifest), f"the model is UNVERIFIED: {manifest.unverified}"]
    classifier = open_classifier(directory, manifest)
    return [check_tokenizer(directory, manifest), _check_logits(directory, classifier)]


def check_labels(directory: Path, manifest: Manifest) -> None:
    """Checks that `labels.json`, `config.json` and the manifest name the same labels in the same order.

    Raises:
        CorruptArtifactError: naming the file that disagrees.
    """
    found = _read_json(directory / LABELS_FILE)
    if found != manifest.labels:
        raise CorruptArtifactError(
            f"{directory / LABELS_FILE}: found {found}, expected {manifest.labels} as in {MANIFEST_FILE}."
        )
    config = _read_json(directory / "config.json")
    named = config.get("id2label") if isinstance(config, dict) else None
    expected = {str(index): label for index, label in enumerate(manifest.labels)}
    if named is not None and named != expected:
        raise CorruptArtifactError(
            f"{directory / 'config.json'}: id2label: found {named}, expected {expected} as in {MANIFEST_FILE}."
        )


def check_tokenizer(directory: Path, manifest: Manifest) -> str:
    """Checks that the tokenizer gives every vector's ids, and says so.

    Raises:
        CorruptArtifactError: naming the first text that differs.
    """
    from edgekit.models.tokenizer import load_bare_tokenizer, tokenizer_vectors

    vectors = read_vectors(directory)
    tokenizer = load_bare_tokenizer(directory / manifest.tokenizer)
    found = tokenizer_vectors(tokenizer, [vector.text for vector in vectors], manifest.max_length)
    for expected, actual in zip(vectors, found, strict=True):
        if expected != actual:
            raise CorruptArtifactError(
                f"{directory / manifest.tokenizer}: encodes {expected.text[:60]!r} as {actual.input_ids[:12]}, "
                f"expected {expected.input_ids[:12]} as in {VECTORS_FILE}. Build the bundle again."
            )
    return f"the tokenizer encodes {len(vectors)} texts as recorded"


def _check_logits(directory: Path, classifier: Classifier) -> str:
    """Checks that the model gives one finite logit a label, and says so."""
    import math

    vectors = read_vectors(directory)
    tried = vectors[:: max(len(vectors) // 3, 1)]
    for vector in tried:
        if not all(math.isfinite(value) for value in classifier.logits(vector.text)):
            raise CorruptArtifactError(
                f"{directory / classifier.manifest.model}: gives a logit that is not finite for {vector.text[:60]!r}. "
                "Build the bundle again."
            )
    return f"the model gives finite logits for {len(tried)} of them"


def read_vectors(directory: Path) -> list[TokenizerVector]:
    """Returns the texts and ids in `tokenizer_vectors.json`.

    Raises:
        CorruptArtifactError: the file is missing, not valid or empty.
    """
    file = directory / VECTORS_FILE
    try:
        vectors = TypeAdapter(list[TokenizerVector]).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise CorruptArtifactError(f"{file}: missing or not valid. Build the bundle again.") from error
    if not vectors:
        raise CorruptArtifactError(f"{file}: holds no text. Build the bundle again.")
    return vectors


def _read_verified(path: Path) -> Manifest:
    """Returns the manifest of a bundle, after checking digests, file list, lineage and labels."""
    artifact = Artifact.open(path, kind="bundle")
    manifest = read_manifest(path)
    _check_file_list(artifact, manifest)
    _check_lineage(artifact, manifest)
    check_contents(path, manifest)
    return manifest


def _check_file_list(artifact: Artifact, manifest: Manifest) -> None:
    """Checks that the manifest lists exactly the artifact's files, with their sizes and digests."""
    listed = {name: record for name, record in artifact.files.items() if name != MANIFEST_FILE}
    file = artifact.path / MANIFEST_FILE
    for name in sorted({*listed, *manifest.files}):
        if listed.get(name) != manifest.files.get(name):
            raise CorruptArtifactError(
                f"{file}: files.{name}: found {manifest.files.get(name)}, expected {listed.get(name)}. "
                "Build the bundle again."
            )
    total = sum(record.bytes for record in listed.values())
    if manifest.total_bytes != total:
        raise CorruptArtifactError(f"{file}: total_bytes: found {manifest.total_bytes}, expected {total}.")
    for name in (manifest.model, manifest.tokenizer):
        if name not in listed:
            raise ArtifactError(f"{file}: names {name}, which is not in the bundle. Build the bundle again.")


def _check_lineage(artifact: Artifact, manifest: Manifest) -> None:
    """Checks that descriptor and manifest tell the same of the exported model."""
    told = artifact.lineage.inputs.get("model")
    if told != manifest.lineage:
        found = "none" if told is None else f"{told.digest[:12]} made by {told.lineage.stage}"
        expected = f"{manifest.lineage.digest[:12]} made by {manifest.lineage.lineage.stage}"
        raise CorruptArtifactError(
            f"{artifact.path / DESCRIPTOR}: lineage: found the model {found}, expected {expected} with the lineage in "
            f"{MANIFEST_FILE}. Build the bundle again."
        )


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"{file}: missing or not JSON. Build the bundle again.") from error
