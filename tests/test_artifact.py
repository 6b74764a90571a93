import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgekit.artifact import (
    Artifact,
    Lineage,
    hash_file,
    publish,
    write_atomically,
)
from edgekit.errors import ArtifactError, CorruptArtifactError, EnvironmentLacksError
from tests.full_disk import files_of_at_most
from tests.pico import pico_tokenizer

LINEAGE = Lineage(stage="prune", config={"layers": 3}, seed=7)


def make(out: Path, files: dict[str, bytes]) -> Artifact:
    with publish(out, kind="model", lineage=LINEAGE) as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(content)
    return Artifact.open(out)


def test_published_artifact_opens_with_its_files_and_lineage(tmp_path):
    artifact = make(tmp_path / "a", {"config.json": b"{}", "onnx/model.onnx": b"weights"})
    assert set(artifact.files) == {"config.json", "onnx/model.onnx"}
    assert artifact.files["onnx/model.onnx"].bytes == 7
    assert artifact.lineage == LINEAGE
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no staging directory may remain"


@pytest.mark.parametrize(("umask", "file_mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_follows_the_umask_whatever_the_library_that_wrote_it_chose(tmp_path, umask, file_mode):
    before = os.umask(umask)
    try:
        with publish(tmp_path / "a", kind="model", lineage=LINEAGE) as staging:
            save_file({"weight": np.zeros(2)}, staging / "model.safetensors")
            (staging / "onnx").mkdir()
            (staging / "onnx" / "model.onnx").write_bytes(b"weights")
            (staging / "onnx" / "model.onnx").chmod(0o600)
        write_atomically(tmp_path / "build.json", "{}")
    finally:
        os.umask(before)
    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    folder_mode = file_mode | (file_mode & 0o444) >> 2
    assert found == {
        "a": folder_mode,
        "a/artifact.json": file_mode,
        "a/model.safetensors": file_mode,
        "a/onnx": folder_mode,
        "a/onnx/model.onnx": file_mode,
        "build.json": file_mode,
    }
    assert Artifact.open(tmp_path / "a").kind == "model"


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert hash_file(tmp_path / "abc") == expected


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d/e"]), st.binary(max_size=8), min_size=1))
def test_digest_depends_on_names_and_contents_only(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("digest")
    first, second = make(root / "one", files), make(root / "two", dict(reversed(files.items())))
    assert first.digest == second.digest
    changed = dict(files)
    name = next(iter(changed))
    changed[name] += b"!"
    assert make(root / "three", changed).digest != first.digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"weightz"), "It was altered"),
        (lambda file: file.write_bytes(b"wei"), "found 3 bytes, expected 7"),
        (lambda file: file.unlink(), "missing"),
        (lambda file: (file.parent / "extra.bin").write_bytes(b"?"), "extra.bin: not part of the artifact"),
    ],
)
def test_damaged_artifact_is_refused_by_file_name(tmp_path, damage, message):
    artifact = make(tmp_path / "a", {"model.safetensors": b"weights"})
    damage(artifact.path / "model.safetensors")
    with pytest.raises(CorruptArtifactError, match=message):
        Artifact.open(artifact.path)


def test_edited_descriptor_is_refused(tmp_path):
    artifact = make(tmp_path / "a", {"model.safetensors": b"weights"})
    descriptor = artifact.path / "artifact.json"
    values = json.loads(descriptor.read_text())
    (artifact.path / "model.safetensors").write_bytes(b"altered")
    values["files"]["model.safetensors"]["sha256"] = hash_file(artifact.path / "model.safetensors")
    descriptor.write_text(json.dumps(values))
    with pytest.raises(CorruptArtifactError, match="digest does not match its file list"):
        Artifact.open(artifact.path)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "distill"},
        {"seed": 8},
        {"config": {"layers": 4}},
        {"inputs": {"model": {"digest": "0" * 64, "lineage": {"stage": "source"}}}},
    ],
)
def test_an_altered_lineage_is_refused(tmp_path, change):
    artifact = make(tmp_path / "a", {"model.safetensors": b"weights"})
    descriptor = artifact.path / "artifact.json"
    values = json.loads(descriptor.read_text())
    values["lineage"] |= change
    descriptor.write_text(json.dumps(values))
    with pytest.raises(CorruptArtifactError, match=r"lineage: found SHA-256 .* It was altered"):
        Artifact.open(artifact.path)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text())
)
def test_every_lineage_opens_as_it_was_written(tmp_path_factory, config):
    place = tmp_path_factory.mktemp("lineage") / "a"
    lineage = Lineage(stage="prune", config=config)
    with publish(place, kind="model", lineage=lineage):
        pass
    assert Artifact.open(place).lineage == lineage


def test_another_format_is_refused_by_its_number(tmp_path):
    artifact = make(tmp_path / "a", {"model.safetensors": b"weights"})
    (artifact.path / "artifact.json").write_text('{"format": 1, "kind": "model"}')
    with pytest.raises(ArtifactError, match=r"found format 1, this edgekit reads format 2\..*make it again"):
        Artifact.open(artifact.path)


def test_existing_output_is_never_touched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("keep")
    with pytest.raises(ArtifactError, match="already exists"), publish(tmp_path / "a", kind="model", lineage=LINEAGE):
        pytest.fail("the body must not run")
    assert (tmp_path / "a" / "precious").read_text() == "keep"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_nothing_remains_when_the_stage_fails(tmp_path, error):
    with pytest.raises(type(error)), publish(tmp_path / "a", kind="model", lineage=LINEAGE) as staging:  # noqa: PT012
        (staging / "half").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_said_so_and_nothing_is_published(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EnvironmentLacksError, match="No space left on device") as caught:  # noqa: SIM117, PT012
        with publish(tmp_path / "a", kind="model", lineage=LINEAGE) as staging:
            (staging / "weights").write_text("x")
            monkeypatch.setattr(os, "fsync", full)
    assert "Nothing was published" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["safetensors", "tokenizers", "numpy", "shutil"])
def test_a_full_disk_is_told_from_the_errors_of_each_library_that_writes(tmp_path, library):
    def fill(staging: Path) -> None:
        if library == "safetensors":
            save_file({"weight": np.zeros(2000)}, staging / "model.safetensors")
        elif library == "tokenizers":
            pico_tokenizer("bert").backend_tokenizer.save(str(staging / "tokenizer.json"))
        elif library == "numpy":
            np.save(staging / "logits.npy", np.zeros(2000))
        else:
            shutil.copytree(source, staging / "copy")

    message = rf"a: could not be written \({'only a part of it fits' if library == 'numpy' else 'File too large'}\)"
    source = tmp_path / "source"
    source.mkdir()
    (source / "large.bin").write_bytes(bytes(20_000))
    told = pytest.raises(EnvironmentLacksError, match=message)
    with told, files_of_at_most(1000), publish(tmp_path / "a", kind="model", lineage=LINEAGE) as staging:
        fill(staging)
    assert list(tmp_path.iterdir()) == [source]


def test_other_os_errors_inside_a_stage_keep_their_meaning(tmp_path):
    with pytest.raises(FileNotFoundError), publish(tmp_path / "a", kind="model", lineage=LINEAGE):
        (tmp_path / "not there").read_text()


def test_not_an_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"found no artifact\.json"):
        Artifact.open(tmp_path)


def test_wrong_kind(tmp_path):
    make(tmp_path / "a", {"x": b""})
    with pytest.raises(ArtifactError, match="found an artifact of kind 'model', expected 'data'"):
        Artifact.open(tmp_path / "a", kind="data")


def test_atomic_write_replaces_whole_files_and_leaves_nothing_behind(tmp_path, monkeypatch):
    file = tmp_path / "build.json"
    write_atomically(file, "old")
    write_atomically(file, "new")
    assert file.read_text() == "new"

    def fail(source: Path, destination: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(EnvironmentLacksError, match="No space left"):
        write_atomically(file, "newer")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["build.json"]
