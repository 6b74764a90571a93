"""`manifest.json`: what a bundle holds, what made it, how to run it, and what was found out about it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from edgekit._version import __version__
from edgekit.artifact import Ancestor, Artifact, FileRecord
from edgekit.errors import ArtifactError, CorruptArtifactError, UnsupportedError
from edgekit.formats import FORMATS, FormatName
from edgekit.packaging.facts import BundleFacts
from edgekit.results import Result
from edgekit.target import READERS_OF_ONNX, RuntimeOnTarget, Target

MANIFEST_FILE = "manifest.json"
EXPORT_FILE = "export.json"
_MACOS = {"iOS16": "13", "iOS18": "15"}
"""The macOS that came with an iOS."""


class TargetSummary(Result):
    """The device that a bundle is for."""

    name: str
    description: str
    form_factor: str
    architecture: str
    operating_system: str | None = None
    """System that apps are built for; None: any, or a bundle of an older version."""


class Versions(Result):
    """What wrote the bundle and what reads it."""

    edgekit: str = __version__
    runtime: str
    """Name of the runtime that the file was checked with."""
    runtime_minimum: str
    """Oldest version of the runtime that the target promises."""
    opset: int | None = None
    """ONNX operator set of the model; None for another format."""
    ir_version: int | None = None
    """ONNX IR version of the model; None for another format."""


class SessionSettings(Result):
    """How to open the model, as it was checked and measured."""

    threads: int
    """Threads within an operator."""
    entries: dict[str, str]
    """Session configuration entries that an app must set too."""


class WritingSettings(Result):
    """How to speak to a language model."""

    ends: list[int]
    """Tokens at which an answer ends."""
    special_tokens: dict[str, str]
    """What the chat template may name (`bos_token`, `eos_token` ...), as text."""
    chat_template: str | None
    """The file with the Jinja template; None for a model that only writes texts on."""
    runtimes: dict[str, str]
    """Runtimes under which the file passed its checks, each with the oldest version that the target promises."""


class Manifest(Result):
    """The content of `manifest.json`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this schema."""
    name: str
    target: TargetSummary
    format: FormatName = "onnx"
    task: str
    labels: list[str]
    """In the order of the logits; none for a language model."""
    max_length: int
    """Tokens a text, special tokens included; cut longer ones. For a language model: prompt and answer together."""
    pad_id: int
    """Token that fills short rows of a batch."""
    model: str
    """The file that the runtime opens."""
    tokenizer: str = "tokenizer.json"
    """The file that a tokenizers library opens."""
    inputs: list[str]
    """int64 arrays (rows, tokens); for a language model past keys and values too."""
    outputs: list[str]
    """`logits`: float32 (rows, labels); for a language model (rows, tokens, vocabulary), and keys and values."""
    session: SessionSettings
    unverified: str | None = None
    """Why nobody has run the file; None: it was compared with torch under its runtime."""
    writing: WritingSettings | None = None
    """How to speak to a language model; None for a classifier."""
    versions: Versions
    facts: BundleFacts
    """Quality, parity, measurements with their machine, and estimates, each apart."""
    lineage: Ancestor
    """The exported model: its digest and everything that made it."""
    files: dict[str, FileRecord]
    """Size and SHA-256 of every file but this one and `artifact.json`."""
    total_bytes: int
    """Sum of the sizes of `files`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True, serialize_by_alias=True
    )


class OldestReader(Result):
    """The oldest onnxruntime that reads a file, and why."""

    version: str
    what: str
    remedy: str


class NamedArray(Result):
    """An input or output of a file."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: str


class ExportDescription(Result):
    """What packaging reads of an export's `export.json`; the exporter writes more."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    opset: int | None = None
    ir_version: int | None = None
    oldest_reader: OldestReader | None = None
    deployment_target: str | None = None
    """Core ML: the oldest iOS that reads it."""
    inputs: list[NamedArray] = []
    outputs: list[NamedArray] = []


def is_handheld(target: TargetSummary) -> bool:
    """Returns whether apps come to the target through a store, built for its system."""
    return target.form_factor in ("phone", "tablet")


def summarize(target: Target) -> TargetSummary:
    """Returns what a bundle says of its target."""
    return TargetSummary(
        name=target.name,
        description=target.description,
        form_factor=target.form_factor,
        architecture=target.architecture,
        operating_system=target.operating_system,
    )


def read_description(export: Artifact) -> ExportDescription:
    """Returns what an export says of itself.

    Raises:
        ArtifactError: `export.json` is missing or not valid.
    """
    file = export.path / EXPORT_FILE
    try:
        return ExportDescription.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{file}: missing or not valid. Export the model again.") from error


def require_system(oldest: str | None, target: Target, shipped: RuntimeOnTarget, name: str) -> None:
    """Does nothing where the target's system reads a Core ML package that needs `oldest`, as coremltools calls it.

    The target's version of the runtime is the system's. `name` is what the message begins with.

    Raises:
        UnsupportedError: it is too old.
    """
    if oldest is None:
        return
    handheld = is_handheld(summarize(target))
    needed = oldest.removeprefix("iOS") if handheld else _MACOS[oldest]
    if shipped.is_older_than(needed):
        system = "iOS" if handheld else "macOS"
        raise UnsupportedError(
            f"{name}: found codes that Core ML reads since {system} {needed}, but '{target.name}' promises "
            f"{shipped.version}. Raise the version in the target's file, or quantize to 8 bits by channel."
        )


def read_versions(export: Artifact, target: Target, shipped: RuntimeOnTarget) -> Versions:
    """Returns the versions of an exported file, after checking them against what the target ships.

    Raises:
        ArtifactError: `export.json` is missing or not valid.
        UnsupportedError: the target's runtime does not read such a file.
    """
    found = read_description(export)
    require_system(found.deployment_target, target, shipped, str(export.path))
    for what, value, ceiling in (
        ("operator set", found.opset, shipped.opset),
        ("IR version", found.ir_version, shipped.ir_version),
    ):
        if value is not None and ceiling is not None and value > ceiling:
            raise UnsupportedError(
                f"{export.path}: found ONNX {what} {value}, but {shipped.name} {shipped.version} on '{target.name}' "
                f"reads at most {ceiling}. Export the model again for this target."
            )
    need = found.oldest_reader
    if need is not None and shipped.name in READERS_OF_ONNX and shipped.is_older_than(need.version):
        raise UnsupportedError(
            f"{export.path}: found {need.what}, which {shipped.name} reads since {need.version}, but '{target.name}' "
            f"promises {shipped.version}. Raise the version in the target's file, or {need.remedy}."
        )
    versions = Versions(runtime=shipped.name, runtime_minimum=shipped.version)
    if not FORMATS[export.kind].has_versions:
        return versions
    return versions.model_copy(update={"opset": found.opset, "ir_version": found.ir_version})


def write_manifest(directory: Path, manifest: Manifest) -> int:
    """Writes `manifest.json` and returns its size in bytes."""
    text = manifest.model_dump_json(indent=2) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return len(text.encode())


def read_manifest(directory: Path) -> Manifest:
    """Returns the manifest of a bundle.

    Raises:
        CorruptArtifactError: it is missing or not valid.
    """
    file = directory / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{file}: missing. Expected a bundle; build it again.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CorruptArtifactError(f"{file}: {key}: {first['msg']}. Build the bundle again.") from error
