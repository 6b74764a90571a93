"""Files out of the system's cache and back."""

from __future__ import annotations

import mmap
import os

import pytest

from edgekit.benchmarking.file_cache import _is_cached, drop_from_cache, read_into_cache

SIZE = 16 * 2**20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    if not drop_from_cache([path]):
        pytest.skip("this file system keeps its files in memory")
    return path


def cached(path, place) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _is_cached(descriptor, place)
    finally:
        os.close(descriptor)


def test_what_was_dropped_is_read_from_the_disk_again(file):
    assert not cached(file, SIZE // 2)
    read_into_cache([file])
    assert cached(file, SIZE // 2)
    assert drop_from_cache([file])
    assert not cached(file, SIZE // 4)


def test_a_file_that_someone_has_mapped_stays_and_that_is_told(file):
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == SIZE
        assert not drop_from_cache([file])


def test_all_files_are_tried_and_an_empty_one_is_no_obstacle(file, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    read_into_cache([file])
    assert drop_from_cache([empty, file])
    assert not cached(file, SIZE // 2)


def test_a_system_without_the_call_says_no(file, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    assert not drop_from_cache([file])
