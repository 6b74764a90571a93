from __future__ import annotations

import json
import shutil

import pytest

from edgekit.artifact import DESCRIPTOR, FORMAT
from edgekit.cache import Cache, locked
from edgekit.contract import StageInputs
from edgekit.errors import UsageError
from edgekit.events import Event
from edgekit.pruning.stage import PruneConfig
from tests.pico import pico_model_artifact


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def cache(tmp_path, events) -> Cache:
    return Cache(tmp_path / "build", seed=0, events=events.append)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> StageInputs:
    return StageInputs(model=pico_model_artifact(tmp_path_factory.mktemp("cache") / "model"))


def test_the_same_call_is_not_run_again(cache, inputs, events):
    first = cache.run("prune", inputs, PruneConfig(layers=2))
    second = cache.run("prune", inputs, PruneConfig(layers=2))
    assert (first.was_cached, second.was_cached) == (False, True)
    assert second.artifact.digest == first.artifact.digest
    assert second.seconds == pytest.approx(first.seconds)
    assert [event.kind for event in events if event.kind == "stage-cached"] == ["stage-cached"]


def test_config_seed_inputs_and_outside_each_make_another_key(cache, inputs, tmp_path):
    cache.run("prune", inputs, PruneConfig(layers=2))
    assert not cache.run("prune", inputs, PruneConfig(layers=3)).was_cached
    other_seed = Cache(cache.directory, seed=1, events=cache.events)
    assert not other_seed.run("prune", inputs, PruneConfig(layers=2)).was_cached
    other_model = StageInputs(model=pico_model_artifact(tmp_path / "other", seed=1))
    assert not cache.run("prune", other_model, PruneConfig(layers=2)).was_cached
    assert not cache.run("prune", inputs, PruneConfig(layers=2), outside={"machine": "other"}).was_cached


def test_altered_artifact_is_refused_and_made_again(cache, inputs, events):
    first = cache.run("prune", inputs, PruneConfig(layers=2)).artifact
    weights = first.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    again = cache.run("prune", inputs, PruneConfig(layers=2))
    assert not again.was_cached
    assert again.artifact.digest == first.digest
    assert any("was refused and is made again" in event.text for event in events)


def remove_descriptor(artifact):
    (artifact.path / DESCRIPTOR).unlink()


def change_format(artifact):
    file = artifact.path / DESCRIPTOR
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT - 1}))


@pytest.mark.parametrize("damage", [remove_descriptor, change_format])
def test_a_half_deleted_artifact_or_one_of_another_format_is_made_again(cache, inputs, damage):
    first = cache.run("prune", inputs, PruneConfig(layers=2)).artifact
    damage(first)
    again = cache.run("prune", inputs, PruneConfig(layers=2))
    assert (again.was_cached, again.artifact.digest) == (False, first.digest)
    assert cache.run("prune", inputs, PruneConfig(layers=2)).was_cached


def test_a_kill_while_a_refused_artifact_is_deleted_does_not_block_the_next_build(cache, inputs, monkeypatch):
    first = cache.run("prune", inputs, PruneConfig(layers=2)).artifact
    (first.path / "config.json").write_text("{}")

    def killed(path, **_):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.run("prune", inputs, PruneConfig(layers=2))
    assert not first.path.exists()
    with locked(cache.directory):
        assert cache.run("prune", inputs, PruneConfig(layers=2)).artifact.digest == first.digest
    assert not list(first.path.parent.glob(".*"))


def test_two_builds_cannot_share_a_directory(tmp_path):
    with locked(tmp_path / "build"), pytest.raises(UsageError, match="another build is running there"):  # noqa: SIM117
        with locked(tmp_path / "build"):
            pytest.fail("the lock must be exclusive")
    with locked(tmp_path / "build"):
        pass


def test_leftovers_of_a_killed_build_are_cleared(tmp_path):
    leftover = tmp_path / "build" / "artifacts" / ".prune-x.partial-abc"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    with locked(tmp_path / "build"):
        assert not leftover.exists()


def test_building_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a directory"), locked(tmp_path / "file"):
        pytest.fail("must not run")
