"""Files of records: read back as made, made by many, killed and resumed, damaged, mistaken, on a full disk."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit.distillation.signal_capture as capture_module
from edgekit.artifact import Artifact, Lineage, publish
from edgekit.distillation.config import TokenSignalConfig
from edgekit.distillation.signal_capture import CapturePlan, assemble, capture_shards
from edgekit.distillation.signal_identity import SignalIdentity, digest_sequences
from edgekit.distillation.token_store import TokenSignal
from edgekit.errors import ArtifactError, CorruptArtifactError, EnvironmentLacksError

LENGTHS = np.array([5, 3, 8, 1, 7, 4, 6, 2], dtype=np.int64)


def identity(**changes):
    fields = {"teacher": "t" * 64, "data": "d" * 64, "sequences": "s" * 64, "vocabulary": 100}
    return SignalIdentity(**{**fields, "config": TokenSignalConfig(k=3), **changes})


def plan(shard_tokens=8, **changes):
    return CapturePlan(identity(**changes), LENGTHS, shard_tokens)


def compute(sequence):
    """Records that say which sequence and position they are of."""
    records = np.zeros(LENGTHS[sequence], dtype=identity().layout.dtype)
    records["ids"][:, 0] = sequence
    records["log_tail"] = np.arange(LENGTHS[sequence])
    return records


def each(of_sequence):
    """Makes records of a shard from those of a sequence."""
    return lambda sequences: np.concatenate([of_sequence(sequence) for sequence in sequences])


def finished(directory, name="out", made=None):
    made = made or plan()
    out = directory / name
    out.mkdir()
    assemble(directory / "work", made, out)
    return out


@pytest.fixture
def captured(tmp_path):
    capture_shards(tmp_path / "work", plan(), each(compute))
    return finished(tmp_path)


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def test_sequences_are_read_back_whole_and_in_part(captured):
    store = TokenSignal.open(captured)
    assert len(store) == 8
    for sequence in range(8):
        assert np.array_equal(store.records(sequence), compute(sequence))
    assert np.array_equal(store.records(2, 3, 6), compute(2)[3:6])
    assert np.array_equal(store.gather([6, 0, 6]), np.concatenate([compute(6), compute(0), compute(6)]))
    assert isinstance(store.records(0).base, np.memmap)
    with pytest.raises(IndexError, match="found 8, expected 0 to 7"):
        store.records(8)
    with pytest.raises(IndexError, match="positions of sequence 1: found 0 to 4, expected 0 to 3"):
        store.records(1, 0, 4)


def test_shards_hold_whole_sequences_and_little_more_than_asked(captured):
    assert [list(shard) for shard in plan().shards] == [[0, 1], [2], [3, 4], [5, 6], [7]]
    assert len(list(captured.glob("shard-*.npy"))) == 5
    # 3 ids and 4 numbers of 2 bytes a token: 14 bytes, and numpy's header
    assert sum(file.stat().st_size for file in captured.glob("shard-*.npy")) == LENGTHS.sum() * 14 + 5 * 192


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_every_sequence_is_in_exactly_one_shard(lengths, shard_tokens):
    made = CapturePlan(identity(), np.array(lengths, dtype=np.int64), shard_tokens)
    assert [sequence for shard in made.shards for sequence in shard] == list(range(len(lengths)))
    for shard in made.shards[:-1]:
        assert sum(lengths[shard.start : shard.stop]) >= shard_tokens
        assert sum(lengths[shard.start : shard.stop - 1]) < shard_tokens


def test_it_is_an_artifact_like_any_other(tmp_path):
    capture_shards(tmp_path / "work", plan(), each(compute))
    lineage = Lineage(stage="capture")
    with publish(tmp_path / "artifact", kind="signal", lineage=lineage) as staging:
        assemble(tmp_path / "work", plan(), staging)
    artifact = Artifact.open(tmp_path / "artifact", kind="signal")
    assert np.array_equal(TokenSignal.open(artifact.path).records(4), compute(4))


def test_progress_counts_tokens(tmp_path):
    seen = []
    capture_shards(tmp_path, plan(), each(compute), lambda done, total: seen.append((done, total)))
    assert seen == [(0, 36), (8, 36), (16, 36), (24, 36), (34, 36), (36, 36)]


def test_a_capture_that_stopped_goes_on_with_what_is_missing(captured, tmp_path):
    calls = []

    def stop(sequence):
        calls.append(sequence)
        if sequence == 4:
            raise KeyboardInterrupt
        return compute(sequence)

    work = tmp_path / "again" / "work"
    with pytest.raises(KeyboardInterrupt):
        capture_shards(work, plan(), each(stop))
    with pytest.raises(ArtifactError, match=r"shard-00002.npy: missing. Run the capture to its end first"):
        finished(tmp_path / "again", "early")
    resumed = []
    capture_shards(work, plan(), each(lambda sequence: resumed.append(sequence) or compute(sequence)))
    assert resumed == [3, 4, 5, 6, 7]
    assert contents(finished(tmp_path / "again")) == contents(captured)


def slow(sequence):
    time.sleep(0.05)
    return compute(sequence)


def work_on(directory, log):
    def logged(sequence):
        with Path(log).open("a") as stream:
            stream.write(f"{os.getpid()} {sequence}\n")
        return slow(sequence)

    capture_shards(Path(directory), plan(), each(logged))


def start(directory, log):
    process = multiprocessing.get_context("spawn").Process(target=work_on, args=(str(directory), str(log)))
    process.start()
    return process


def test_many_processes_share_the_shards(captured, tmp_path):
    log = tmp_path / "log"
    workers = [start(tmp_path / "many" / "work", log) for _ in range(3)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(sequence) for _, sequence in lines) == list(range(8))  # each once
    assert len({pid for pid, _ in lines}) > 1
    assert contents(finished(tmp_path / "many")) == contents(captured)


def test_the_shard_of_a_killed_process_is_taken_over(captured, tmp_path):
    log, work = tmp_path / "log", tmp_path / "killed" / "work"
    victim = start(work, log)
    while not (log.is_file() and "2" in [line.split()[1] for line in log.read_text().splitlines()]):
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    made = list(work.glob("*/shard-*.npy"))
    assert 1 <= len(made) < 5
    before = {file: file.stat().st_mtime_ns for file in made}
    capture_shards(work, plan(), each(compute))
    assert {file: file.stat().st_mtime_ns for file in made} == before
    assert contents(finished(tmp_path / "killed")) == contents(captured)


def test_captures_of_another_teacher_or_seed_do_not_meet(captured, tmp_path):
    work = tmp_path / "work"
    for changed in (plan(teacher="u" * 64), plan(seed=1), plan(shard_tokens=9), plan(config=TokenSignalConfig(k=2))):
        before = len(list(work.glob("*/shard-*.npy")))
        capture_shards(work, changed, each(lambda sequence: compute(sequence)[:0]))
        assert len(list(work.glob("*/shard-*.npy"))) == before + len(changed.shards)


def test_a_full_disk_is_an_error_that_keeps_what_is_finished(tmp_path, monkeypatch):
    save = np.save

    def full(stream, records, **options):
        if len(list(tmp_path.glob("*/shard-*.npy"))) == 2:
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(stream, records, **options)

    monkeypatch.setattr(capture_module.np, "save", full)
    with pytest.raises(EnvironmentLacksError, match=r"No space left .* 2 of 5 shards are finished and kept"):
        capture_shards(tmp_path, plan(), each(compute))
    assert not list(tmp_path.glob("*/.*partial*"))
    monkeypatch.setattr(capture_module.np, "save", save)
    calls = []
    capture_shards(tmp_path, plan(), each(lambda sequence: calls.append(sequence) or compute(sequence)))
    assert calls == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("damage", ["alter", "truncate", "remove"])
def test_a_damaged_shard_is_refused_when_it_is_read(captured, damage):
    file = captured / "shard-00001.npy"
    content = bytearray(file.read_bytes())
    file.unlink()  # the file is linked to the work directory's
    if damage == "alter":
        content[-1] ^= 1
    if damage != "remove":
        file.write_bytes(content[:-3] if damage == "truncate" else content)
    store = TokenSignal.open(captured)
    assert np.array_equal(store.records(0), compute(0))
    message = {"alter": "SHA-256 is not the one", "truncate": "truncated or altered", "remove": "missing"}[damage]
    with pytest.raises(CorruptArtifactError, match=rf"shard-00001.npy: .*{message}"):
        store.records(2)
    with pytest.raises(CorruptArtifactError):
        TokenSignal.open(captured).verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "x" * 64}, r"another teacher: found t{16}\.\.\., expected x{16}"),
        ({"data": "x" * 64}, "another data set"),
        (
            {"sequences": "x" * 64},
            r"another set of token sequences \(tokenizer, chat template, length or use_unlabelled\)",
        ),
        ({"vocabulary": 99}, "another vocabulary size: found 100, expected 99"),
        ({"vocabulary_map": "m" * 64}, "another vocabulary map: found None"),
        ({"config": TokenSignalConfig(k=3, temperature=2.0)}, "captured at temperature 1.0, expected 2.0"),
    ],
)
def test_a_capture_of_something_else_is_refused(captured, changes, message):
    store = TokenSignal.open(captured)
    store.require(identity(seed=9, config=TokenSignalConfig(k=2)))
    with pytest.raises(ArtifactError, match=message):
        store.require(identity(**changes))


def test_a_directory_that_is_no_capture_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is not a description of teacher outputs"):
        TokenSignal.open(tmp_path)


def test_the_digest_of_sequences_sees_ids_and_lengths_but_not_how_ids_are_stored():
    ids, ends = np.array([1, 2, 3, 4], dtype=np.uint16), np.array([3, 4], dtype=np.int64)
    digests = {
        digest_sequences(ids, ends),
        digest_sequences(ids, np.array([2, 4])),
        digest_sequences(np.array([1, 2, 3, 5]), ends),
        digest_sequences(ids[::-1], ends),
    }
    assert len(digests) == 4
    assert digest_sequences(ids.astype(np.uint32), ends) == digest_sequences(ids, ends)
