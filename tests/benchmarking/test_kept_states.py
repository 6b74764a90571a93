"""A teacher that reads a text once gives the same logits ever after, to the bit, or reads it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.benchmarking import kept_states
from edgekit.benchmarking.kept_states import KeptStates
from edgekit.benchmarking.result_files import read_quality
from edgekit.benchmarking.stage import EvaluateConfig, evaluate
from edgekit.contract import StageContext, StageInputs
from edgekit.runtimes.torch_generation import TorchGenerationSession
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

IDS = np.random.default_rng(0).integers(4, 290, size=40)


class Watched:
    """A teacher that counts how often it reads."""

    def __init__(self, place: Path, architecture: str = "llama", **settings: object) -> None:
        self.network = pico_decoder(architecture, **settings).model
        self.passes = 0
        self.network.base_model.register_forward_hook(self._count)
        self.session = TorchGenerationSession(self.network, 128)
        self.kept = KeptStates(self.session, "digest", 1, place)

    def _count(self, *_: object) -> None:
        self.passes += 1

    def expected(self, ids: np.ndarray) -> np.ndarray:
        """The logits of a session that keeps nothing."""
        return TorchGenerationSession(self.network, 128).logits(ids)


def test_a_text_is_read_once_and_a_prefix_is_another_text(tmp_path):
    teacher = Watched(tmp_path)
    for ids in (IDS, IDS[:7], IDS, IDS[:7]):
        np.testing.assert_array_equal(teacher.kept.logits(ids), teacher.expected(ids))
    assert teacher.passes == 2 + 4, "4 by the session that keeps nothing"
    other = Watched(tmp_path)
    np.testing.assert_array_equal(other.kept.logits(IDS), teacher.expected(IDS))
    assert other.passes == 0, "another evaluation finds it there"


@pytest.mark.parametrize("change", [{"digest": "another"}, {"threads": 2}])
def test_what_changes_a_bit_changes_the_name(tmp_path, change):
    teacher = Watched(tmp_path)
    teacher.kept.logits(IDS)
    settings = {"digest": "digest", "threads": 1} | change
    KeptStates(teacher.session, directory=tmp_path, **settings).logits(IDS)
    assert teacher.passes == 2


@pytest.mark.parametrize("architecture", ["granite", "gemma3_text"])
def test_a_model_that_changes_its_logits_after_the_output_layer_is_read_each_time(tmp_path, architecture):
    settings = {"final_logit_softcapping": 5.0} if architecture == "gemma3_text" else {}
    teacher = Watched(tmp_path, architecture, **settings)
    for _ in range(2):
        np.testing.assert_array_equal(teacher.kept.logits(IDS), teacher.expected(IDS))
    assert teacher.passes == 2 + 2
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_short_is_a_text_to_read_again(tmp_path):
    teacher = Watched(tmp_path)
    teacher.kept.logits(IDS)
    (file,) = tmp_path.iterdir()
    for content in (file.read_bytes()[:200], b"", b"no numbers"):
        file.write_bytes(content)
        np.testing.assert_array_equal(teacher.kept.logits(IDS), teacher.expected(IDS))
        assert len(file.read_bytes()) > 1000


def test_beyond_the_limit_or_where_nothing_can_be_written_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no directory")
    for place, limit in ((tmp_path / "file", 1 << 30), (tmp_path / "full", 100)):
        monkeypatch.setattr(kept_states, "LARGEST_BYTES", limit)
        teacher = Watched(place)
        np.testing.assert_array_equal(teacher.kept.logits(IDS), teacher.expected(IDS))
    assert not list((tmp_path / "full").iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Artifact], Artifact, Artifact]:
    place = tmp_path_factory.mktemp("kept")
    models = [publish_model(pico_decoder("llama", seed=seed), place / f"model-{seed}") for seed in (1, 2)]
    teacher = publish_model(pico_decoder("llama", seed=3), place / "teacher")
    return models, teacher, pico_language_data(place, documents=40)


def test_evaluations_that_share_a_memory_find_the_same_quality(made, tmp_path):
    models, teacher, data = made
    memory = tmp_path / "memory"
    for number, model in enumerate(models):
        found = []
        for shared in (None, memory):
            out = tmp_path / f"{number}-{shared is None}"
            context = StageContext(out, memory=shared)
            inputs = StageInputs(model=model, teacher=teacher, data=data)
            found.append(read_quality(evaluate(inputs, EvaluateConfig(max_rows=4), context)))
        assert found[0] == found[1]
        assert len(list((memory / "teacher-states").iterdir())) == 4, "the second model adds none"
