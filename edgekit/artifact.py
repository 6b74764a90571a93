"""Artifacts: directories that say what they hold, what made them, and the SHA-256 of every file.

`publish` is the only writer: it fills a sibling directory, hashes it, and renames it into place, so that an
artifact is either whole or absent. Nothing here knows what a model or a data set is.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from edgekit._version import __version__
from edgekit.disk import disk_problem, writing
from edgekit.errors import ArtifactError, CorruptArtifactError, EdgekitError, EnvironmentLacksError
from edgekit.formats import FormatName

DESCRIPTOR = "artifact.json"
FORMAT = 2

Kind = Literal["model", "data", "signal", FormatName, "quality", "parity", "measurement", "lowering", "bundle"]


class FileRecord(BaseModel):
    """Size and digest of one file of an artifact."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    """Hexadecimal SHA-256 of the content."""
    bytes: int
    """Size in bytes."""


class Lineage(BaseModel):
    """What made an artifact: enough to make it again."""

    model_config = ConfigDict(frozen=True)

    stage: str
    """Name of the stage in the stage table; `source` for files that edgekit did not make."""
    config: dict[str, JsonValue] = {}
    """The stage's configuration."""
    seed: int = 0
    """The seed that the stage was given."""
    edgekit_version: str = __version__
    """Version of edgekit that ran the stage."""
    inputs: dict[str, Ancestor] = {}
    """Role (`model`, `teacher`, `data`, ...) to the artifact that played it."""


class Ancestor(BaseModel):
    """An input artifact by digest, with its own lineage."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """Digest of the input artifact."""
    lineage: Lineage


class _Header(BaseModel):
    """What `artifact.json` holds in every format."""

    format: int


class _Descriptor(_Header):
    """The content of `artifact.json`."""

    kind: Kind
    digest: str
    files: dict[str, FileRecord]
    lineage: Lineage
    lineage_digest: str


@dataclass(frozen=True)
class Artifact:
    """A directory of files with their digests and lineage."""

    path: Path
    kind: Kind
    digest: str
    files: dict[str, FileRecord]
    lineage: Lineage

    @classmethod
    def open(cls, path: Path | str, *, kind: Kind | None = None, verify: bool = True) -> Artifact:
        """Returns the artifact at `path` after checking its lineage and, with `verify`, the digest of every file.

        Raises:
            ArtifactError: no artifact there, or one of another kind.
            CorruptArtifactError: a file is missing, truncated, altered, or was added, or the lineage was altered.
        """
        path = Path(path)
        descriptor_path = path / DESCRIPTOR
        if not descriptor_path.is_file():
            found = f"found no {DESCRIPTOR}" if path.exists() else "does not exist"
            raise ArtifactError(
                f"{path}: {found}; expected a directory that an edgekit stage wrote. Check the path, or make one "
                "first: of a model with `edgekit import`, of text with `edgekit prepare`."
            )
        descriptor = _read_descriptor(descriptor_path)
        if kind is not None and descriptor.kind != kind:
            raise ArtifactError(f"{path}: found an artifact of kind '{descriptor.kind}', expected '{kind}'.")
        artifact = cls(path, descriptor.kind, descriptor.digest, descriptor.files, descriptor.lineage)
        if verify:
            artifact.verify()
        return artifact

    def verify(self) -> None:
        """Checks every file against its digest.

        Raises:
            CorruptArtifactError: naming the first file that is missing, truncated, altered or unlisted.
        """
        present = set(_relative_files(self.path)) - {DESCRIPTOR}
        for name, record in self.files.items():
            file = self.path / name
            if name not in present:
                raise CorruptArtifactError(f"{file}: missing. The artifact is not whole: build or download it again.")
            size = file.stat().st_size
            if size != record.bytes:
                raise CorruptArtifactError(
                    f"{file}: found {size} bytes, expected {record.bytes}. It is truncated or altered: "
                    "build or download it again."
                )
            found = hash_file(file)
            if found != record.sha256:
                raise CorruptArtifactError(
                    f"{file}: found SHA-256 {found[:16]}..., expected {record.sha256[:16]}.... "
                    "It was altered: build or download it again."
                )
        for name in sorted(present - set(self.files)):
            raise CorruptArtifactError(f"{self.path / name}: not part of the artifact. Remove it, or build again.")
        if artifact_digest(self.kind, self.files) != self.digest:
            raise CorruptArtifactError(f"{self.path / DESCRIPTOR}: its digest does not match its file list.")

    def as_ancestor(self) -> Ancestor:
        """Returns the record that a child's lineage keeps of this artifact."""
        return Ancestor(digest=self.digest, lineage=self.lineage)


def artifact_digest(kind: str, files: dict[str, FileRecord]) -> str:
    """Returns the hexadecimal SHA-256 over the kind and the sorted file digests; the lineage does not count."""
    return hash_json({"kind": kind, "files": {name: files[name].sha256 for name in sorted(files)}})


def lineage_digest(lineage: Lineage) -> str:
    """Returns the hexadecimal SHA-256 of a lineage as JSON holds it."""
    return hash_json(json.loads(lineage.model_dump_json()))


def hash_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_json(value: JsonValue) -> str:
    """Returns the hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no white space)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def publish(out: Path, *, kind: Kind, lineage: Lineage) -> Iterator[Path]:
    """Yields an empty directory to fill; on success it becomes the artifact `out`, on any error nothing remains.

    Raises:
        ArtifactError: `out` exists.
        EnvironmentLacksError: the disk is full or not writable.
    """
    out = Path(out)
    require_absent(out)
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        yield staging
        _seal(staging, kind, lineage)
        require_absent(out)
        staging.rename(out)
        _sync(out.parent)
    except Exception as error:
        problem = None if isinstance(error, EdgekitError) else disk_problem(error)
        if problem is None:
            raise
        raise EnvironmentLacksError(
            f"{out}: could not be written ({problem}). Nothing was published. "
            "Free disk space or choose another place, then run the same command again."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file through a sibling and a rename, so that readers see the old or the new content.

    Raises:
        EnvironmentLacksError: the disk is full or not writable.
    """
    with writing(f"{path}:", "Free disk space, then try again."):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with partial.open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def require_absent(out: Path) -> None:
    """Refuses an output that exists.

    Raises:
        ArtifactError: `out` exists.
    """
    if out.exists():
        raise ArtifactError(f"{out}: already exists; nothing edits an artifact in place. Choose another output.")


def _read_descriptor(file: Path) -> _Descriptor:
    """Returns the content of an `artifact.json`, its lineage checked against the digest beside it."""
    try:
        text = file.read_text(encoding="utf-8")
        found = _Header.model_validate_json(text).format
        if found != FORMAT:
            raise ArtifactError(
                f"{file}: found format {found}, this edgekit reads format {FORMAT}. "
                "Use the edgekit version that wrote it, or make it again."
            )
        descriptor = _Descriptor.model_validate_json(text)
    except ValueError as error:
        raise CorruptArtifactError(f"{file}: not a valid descriptor ({_first_line(error)}).") from error
    digest = lineage_digest(descriptor.lineage)
    if digest != descriptor.lineage_digest:
        raise CorruptArtifactError(
            f"{file}: lineage: found SHA-256 {digest[:16]}..., expected {descriptor.lineage_digest[:16]}.... "
            "It was altered: build or download it again."
        )
    return descriptor


def _seal(staging: Path, kind: Kind, lineage: Lineage) -> None:
    """Writes the descriptor, gives every file the mode that the umask says, and flushes it to the disk."""
    records = {name: _record(staging / name) for name in sorted(_relative_files(staging))}
    descriptor = _Descriptor(
        format=FORMAT,
        kind=kind,
        digest=artifact_digest(kind, records),
        files=records,
        lineage=lineage,
        lineage_digest=lineage_digest(lineage),
    )
    (staging / DESCRIPTOR).write_text(descriptor.model_dump_json(indent=2) + "\n", encoding="utf-8")
    mode = stat.S_IMODE((staging / DESCRIPTOR).stat().st_mode)
    for name in _relative_files(staging):
        # Libraries write some files for their owner alone; all are to be as readable as a file written plainly.
        if stat.S_IMODE((staging / name).stat().st_mode) != mode:
            (staging / name).chmod(mode)
        _sync(staging / name)
    staging.chmod(mode | (mode & 0o444) >> 2)  # whoever may read may enter
    _sync(staging)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256=hash_file(path), bytes=path.stat().st_size)


def _relative_files(path: Path) -> list[str]:
    return [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
