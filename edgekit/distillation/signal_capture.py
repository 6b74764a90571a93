"""Makes the shards of a capture, in many processes at once, and goes on where a killed one stopped.

Finished shards lie in the work directory. A shard is claimed by a lock on a file, which the system drops when its owner
dies. It knows neither models nor what is in a record.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import FileRecord, hash_file, hash_json, write_atomically
from edgekit.disk import disk_problem
from edgekit.distillation.signal_identity import (
    DESCRIPTION_FILE,
    FORMAT,
    OFFSETS_FILE,
    SignalDescription,
    SignalIdentity,
    shard_name,
    verify_file,
)
from edgekit.distillation.token_signal import Records
from edgekit.errors import ArtifactError, EnvironmentLacksError

SHARD_TOKENS = 1 << 16

_POLL_SECONDS = 0.2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class CapturePlan:
    """Which sequences go into which shard."""

    identity: SignalIdentity
    lengths: NDArray[np.int64]
    """(sequences) tokens of each."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens after which a shard is full: what a killed process loses at most."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(sequences + 1), the first record of each sequence."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def shards(self) -> list[range]:
        """The sequences of each shard: each holds at least one, and no more once it is full."""
        offsets, found, first = self.offsets, [], 0
        for last in range(1, len(offsets)):
            if offsets[last] - offsets[first] >= self.shard_tokens or last == len(self.lengths):
                found.append(range(first, last))
                first = last
        return found

    @property
    def fingerprint(self) -> str:
        """Tells this plan from any other."""
        lengths = hashlib.sha256(self.lengths.astype("<i8").tobytes()).hexdigest()
        return hash_json([FORMAT, self.identity.model_dump(mode="json"), lengths, self.shard_tokens])


def capture_shards(
    directory: Path,
    plan: CapturePlan,
    compute: Callable[[range], Records],
    tell: Callable[[int, int], None] = lambda finished, total: None,
) -> None:
    """Makes every shard that nobody has finished, and returns when all are there.

    Any number of processes may call it at once with equal arguments, on one machine or on a shared file system that
    locks; each shard is made by one of them. One that dies loses its unfinished shard, which another takes over.

    Args:
        directory: the work directory, shared; captures of other plans in it are left alone.
        plan: what to capture.
        compute: the numbers of a shard's sequences to their records, one sequence after the other.
        tell: called with (finished, all) tokens after each shard.

    Raises:
        EnvironmentLacksError: the disk is full or not writable; finished shards are kept.
    """
    place, shards, offsets = _place(directory, plan), plan.shards, plan.offsets
    sizes = [int(offsets[shard.stop] - offsets[shard.start]) for shard in shards]
    with _disk_errors(place, len(shards)):
        place.mkdir(parents=True, exist_ok=True)
        while True:
            missing = [index for index in range(len(shards)) if not _is_finished(place, index)]
            tell(sum(sizes) - sum(sizes[index] for index in missing), sum(sizes))
            if not missing:
                return
            made = False
            for index in missing:
                with _claim(place, index) as claimed:
                    if claimed and not _is_finished(place, index):
                        _write_shard(place, index, compute(shards[index]))
                        made = True
                if made:
                    break
            if not made:
                time.sleep(_POLL_SECONDS)


def assemble(directory: Path, plan: CapturePlan, out: Path) -> None:
    """Writes the finished capture of `plan` into the directory `out`; shards are linked, not copied, if possible.

    Raises:
        ArtifactError: a shard is missing.
        CorruptArtifactError: a shard is not what was written.
        EnvironmentLacksError: the disk is full or not writable.
    """
    place, files = _place(directory, plan), {}
    with _disk_errors(place, len(plan.shards)):
        for index in range(len(plan.shards)):
            if not _is_finished(place, index):
                raise ArtifactError(f"{place / shard_name(index)}: missing. Run the capture to its end first.")
            record = FileRecord.model_validate_json(_record_file(place, index).read_text(encoding="utf-8"))
            _link(place / shard_name(index), out / shard_name(index))
            verify_file(out / shard_name(index), record)
            files[shard_name(index)] = record
        np.save(out / OFFSETS_FILE, plan.offsets, allow_pickle=False)
        offsets = out / OFFSETS_FILE
        files[OFFSETS_FILE] = FileRecord(sha256=hash_file(offsets), bytes=offsets.stat().st_size)
        description = SignalDescription(
            format=FORMAT,
            identity=plan.identity,
            bytes_per_token=plan.identity.layout.bytes_per_token,
            shards=[shard.start for shard in plan.shards],
            files=files,
        )
        write_atomically(out / DESCRIPTION_FILE, description.model_dump_json(indent=2) + "\n")


def _place(directory: Path, plan: CapturePlan) -> Path:
    return directory / f"signal-{plan.fingerprint[:16]}"


def _record_file(place: Path, index: int) -> Path:
    return place / f"shard-{index:05d}.json"


def _is_finished(place: Path, index: int) -> bool:
    return _record_file(place, index).is_file() and (place / shard_name(index)).is_file()


@contextmanager
def _claim(place: Path, index: int) -> Iterator[bool]:
    """Yields True when this process alone may make the shard; the system drops the lock of one that dies."""
    with (place / f"shard-{index:05d}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _write_shard(place: Path, index: int, records: Records) -> None:
    """Writes a shard beside its place and renames it, then says that it is finished."""
    partial = place / f".{shard_name(index)}.partial"
    try:
        with partial.open("wb") as stream:
            np.save(stream, records, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        record = FileRecord(sha256=hash_file(partial), bytes=partial.stat().st_size)
        partial.replace(place / shard_name(index))
    finally:
        partial.unlink(missing_ok=True)
    write_atomically(_record_file(place, index), record.model_dump_json() + "\n")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        shutil.copyfile(source, target)


@contextmanager
def _disk_errors(place: Path, shards: int) -> Iterator[None]:
    """Turns a full or unwritable disk into an error that says what is kept.

    Raises:
        EnvironmentLacksError: in place of the system's error.
    """
    try:
        yield
    except (OSError, EnvironmentLacksError) as error:
        finished = sum(_is_finished(place, index) for index in range(shards))
        cause = error.__cause__ if isinstance(error, EnvironmentLacksError) else error
        reason = (disk_problem(cause) if isinstance(cause, Exception) else None) or str(error)
        raise EnvironmentLacksError(
            f"{place}: could not be written ({reason}). {finished} of {shards} shards are finished and kept. Free disk "
            "space and run the same command again: it goes on from there."
        ) from error
