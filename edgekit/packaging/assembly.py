"""Fills the directory of a bundle: the export's files, what describes them, and what shows an app how to use them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from edgekit.artifact import Artifact, FileRecord, hash_file
from edgekit.errors import BundleSizeError
from edgekit.models.tasks import TASKS, read_task
from edgekit.models.tokenizer import NASTY_TEXTS, TOKENIZER_FILE, load_bare_tokenizer, tokenizer_vectors
from edgekit.packaging.bundle import LABELS_FILE, VECTORS_FILE, check_behaviour, check_contents
from edgekit.packaging.config import PackageConfig
from edgekit.packaging.language_bundle import describe_language, language_files
from edgekit.packaging.manifest import (
    Manifest,
    SessionSettings,
    read_description,
    read_versions,
    summarize,
    write_manifest,
)
from edgekit.packaging.model_card import CARD_FILE, CardTexts, render_card
from edgekit.packaging.platforms import platform_of
from edgekit.packaging.usage import usage_files
from edgekit.results import Unverified
from edgekit.runtimes.onnxruntime_runtime import SESSION_SETTINGS
from edgekit.runtimes.openvino_runtime import session_settings
from edgekit.runtimes.protocol import SessionConfig, get_runtime, model_file
from edgekit.target import Target

_SETTINGS: dict[str, Callable[[str], dict[str, str]]] = {
    "onnxruntime": lambda kind: SESSION_SETTINGS,
    "openvino": session_settings,
}
"""Runtime to what gives, for a format, the settings that an app must make too."""


def fill(staging: Path, model: Artifact, config: PackageConfig) -> None:
    """Writes every file of the bundle, then opens it and runs tokenizer and model as an app would, where they run.

    Raises:
        BundleSizeError: the bundle is larger than the target's store allows.
        UnsupportedError: the target's runtime does not read the file.
        CorruptArtifactError: the files disagree.
    """
    for name in model.files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.path / name, staging / name)
    writes = read_task(model).kind == "causal-lm"
    manifest = describe_language(model, config) if writes else _describe(model, config)
    own = language_files(staging, manifest) if writes else _classifier_files(manifest)
    for name, content in {**own, **platform_of(manifest).app_files(manifest)}.items():
        (staging / name).write_text(content, encoding="utf-8")
    _write_vectors(staging, manifest)
    manifest = _with_files(manifest, staging)
    card = render_card(manifest, CardTexts(config.description, config.license))
    (staging / CARD_FILE).write_text(card, encoding="utf-8")
    manifest = _with_files(manifest, staging)
    _check_size(manifest.total_bytes + write_manifest(staging, manifest), config.target)
    check_contents(staging, manifest)
    check_behaviour(staging, manifest)


def _classifier_files(manifest: Manifest) -> dict[str, str]:
    labels = {LABELS_FILE: _as_json(list[JsonValue](manifest.labels))}
    return {**labels, **usage_files(manifest.versions.runtime)}


def _describe(model: Artifact, config: PackageConfig) -> Manifest:
    """Returns the manifest, still without files."""
    task = read_task(model)
    runtime = config.shipped_with()
    shipped = config.target.runtime(runtime)
    unseen = config.facts.parity if isinstance(config.facts.parity, Unverified) else None
    taken, given = _arrays(model, runtime) if unseen is None else _described_arrays(model)
    return Manifest(
        name=config.name,
        target=summarize(config.target),
        format=model.kind,
        task=TASKS[task.kind].kind,
        labels=task.labels,
        max_length=task.max_length,
        pad_id=_pad_id(model.path / "config.json"),
        model=model_file(model).relative_to(model.path).as_posix(),
        tokenizer=TOKENIZER_FILE,
        inputs=taken,
        outputs=given,
        unverified=None if unseen is None else unseen.reason,
        session=SessionSettings(threads=shipped.threads, entries=_settings(runtime, model.kind)),
        versions=read_versions(model, config.target, shipped),
        facts=config.facts,
        lineage=model.as_ancestor(),
        files={},
        total_bytes=0,
    )


def _arrays(model: Artifact, runtime: str) -> tuple[list[str], list[str]]:
    """Returns the names of inputs and outputs as the runtime finds them in the file."""
    session = get_runtime(runtime).open(model, SessionConfig())
    return list(session.input_names), list(session.output_names)


def _described_arrays(model: Artifact) -> tuple[list[str], list[str]]:
    """Returns the same as the export says, of a file that nothing here opens."""
    found = read_description(model)
    return [entry.name for entry in found.inputs], [entry.name for entry in found.outputs]


def _settings(runtime: str, kind: str) -> dict[str, str]:
    return _SETTINGS[runtime](kind) if runtime in _SETTINGS else {}


def _with_files(manifest: Manifest, staging: Path) -> Manifest:
    """Returns the manifest with the files that are there now."""
    names = sorted(file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file())
    records = {
        name: FileRecord(sha256=hash_file(staging / name), bytes=(staging / name).stat().st_size) for name in names
    }
    total = sum(record.bytes for record in records.values())
    return manifest.model_copy(update={"files": records, "total_bytes": total})


def _write_vectors(staging: Path, manifest: Manifest) -> None:
    """Writes texts that tokenizers are known to disagree on, with the ids that the bundle's tokenizer gives."""
    tokenizer = load_bare_tokenizer(staging / manifest.tokenizer)
    vectors = tokenizer_vectors(tokenizer, NASTY_TEXTS, manifest.max_length)
    text = _as_json([vector.model_dump(mode="json") for vector in vectors])
    (staging / VECTORS_FILE).write_text(text, encoding="utf-8")


def _check_size(found: int, target: Target) -> None:
    if target.bundle_bytes is not None and found > target.bundle_bytes:
        raise BundleSizeError(
            f"package: the bundle has {found:,} bytes, and '{target.name}' allows at most {target.bundle_bytes:,} "
            "(bundle_bytes). Nothing was bundled. Use fewer layers, a smaller vocabulary or fewer bits.",
            found=found,
            limit=target.bundle_bytes,
        )


def _pad_id(config: Path) -> int:
    """Returns the padding token of a model's `config.json`, or 0 where it names none."""
    found = json.loads(config.read_text(encoding="utf-8")).get("pad_token_id")
    return found if isinstance(found, int) else 0


def _as_json(value: JsonValue) -> str:
    return json.dumps(value, indent=1) + "\n"
