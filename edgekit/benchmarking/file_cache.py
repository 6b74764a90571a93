"""Puts files out of the system's file cache (Linux only), so that the next read comes from the disk, and back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_ATTEMPTS = 4
_PAUSE_S = 0.25
_PROBES = 64
_APART_BYTES = 4 * 2**20
_CHUNK_BYTES = 2**20


def drop_from_cache(files: Iterable[Path]) -> bool:
    """Returns whether no page of the files is in the cache any more.

    False where the system has no such call, where the file system lives in memory, or while another process has the
    files mapped.
    """
    remaining = list(files)
    for attempt in range(_ATTEMPTS):
        if attempt:  # pages that a process which just ended had mapped may take a moment to be free
            time.sleep(_PAUSE_S)
        remaining = [file for file in remaining if not _drop(file)]
        if not remaining:
            return True
    return False


def read_into_cache(files: Iterable[Path]) -> None:
    """Reads the files once."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(_CHUNK_BYTES):
                pass


def _drop(file: Path) -> bool:
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not written yet stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        dropped = not any(_is_cached(descriptor, place) for place in _probes(os.fstat(descriptor).st_size))
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # asking may have fetched pages
        return dropped
    except OSError:  # the file system knows neither
        return False
    finally:
        os.close(descriptor)


def _probes(size: int) -> range:
    """Returns places all over a file, too far apart for what is fetched around one to reach the next."""
    return range(size - 1, -1, -max(size // _PROBES, _APART_BYTES))


def _is_cached(descriptor: int, place: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
