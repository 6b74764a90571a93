"""The student writes, the teacher scores; the teacher writes, the student reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit.distillation.teacher_text as teacher_text
from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.data.documents import Completion, Conversation, Message, PlainText
from edgekit.data.prepared import PreparedData
from edgekit.data.source import Columns, DataSource
from edgekit.data.stage import PrepareConfig, prepare
from edgekit.data.token_store import Piece
from edgekit.distillation.config import DistillConfig, LanguageConfig, OnPolicyConfig, WriteConfig
from edgekit.distillation.on_policy import pack_written, prompt_of
from edgekit.distillation.stage import distill
from edgekit.distillation.teacher_text import answered
from edgekit.distillation.writing import WrittenSequence, student_writes
from edgekit.distillation.writing_stage import write
from edgekit.errors import DataError, UnsupportedError, UsageError
from edgekit.models.source import load_model
from tests.distillation.training import LANGUAGE_DISTILL, Recorder, assert_same_weights, weights
from tests.pico import pico_model_artifact, publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data


def on_policy(share: float, **changes: object) -> DistillConfig:
    written = OnPolicyConfig(share=share, max_new_tokens=12, prompt_tokens=4)
    language = LANGUAGE_DISTILL.language.model_copy(update={"on_policy": written})
    return LANGUAGE_DISTILL.model_copy(update={"language": language, **changes})


@pytest.fixture(scope="module")
def language_data(place: Path) -> Artifact:
    return pico_language_data(place, documents=60, seed=4)


@pytest.fixture(scope="module")
def speaker(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=7), place / "policy-speaker")


@pytest.fixture(scope="module")
def learner(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=8, layers=2), place / "policy-learner")


@pytest.fixture
def inputs(speaker: Artifact, learner: Artifact, language_data: Artifact) -> StageInputs:
    return StageInputs(model=learner, teacher=speaker, data=language_data)


def losses(recorder: Recorder) -> list[float]:
    return [event.values["loss"] for event in recorder.of("progress") if "loss" in event.values]


def test_a_prompt_is_what_precedes_the_answer_or_the_beginning_of_a_text() -> None:
    ids = np.arange(10, 20)
    plain = np.array([False] + [True] * 9)
    answer = np.array([False] * 6 + [True] * 4)
    assert prompt_of(Piece(ids, plain), 3).tolist() == [10, 11, 12]
    assert prompt_of(Piece(ids, plain), 16).tolist() == [10, 11, 12, 13, 14]  # at most half
    assert prompt_of(Piece(ids[:2], plain[:2]), 16).tolist() == [10]
    assert prompt_of(Piece(ids, answer), 3).tolist() == [10, 11, 12, 13, 14, 15]


def written(prompt: list[int], answer: list[int]) -> WrittenSequence:
    mask = np.array([False] * len(prompt) + [True] * len(answer))
    return WrittenSequence(np.array(prompt + answer, dtype=np.int64), mask, finished=True)


def test_what_was_written_is_packed_and_alone_is_learned() -> None:
    batch = pack_written([written([1, 2], [3, 4]), written([5], [6])], 8, 99, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 99, 99]]
    assert batch.labels.tolist() == [[-100, -100, 3, 4, -100, 6, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, -1, -1]]
    assert batch.rows.tolist() == [1, 2, 4]
    assert batch.followers.tolist() == [3, 4, 6]
    assert batch.is_written


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_every_written_token_is_learned_once(sizes: list[tuple[int, int]]) -> None:
    texts = [written([1] * prompt, list(range(100 * n, 100 * n + new))) for n, (prompt, new) in enumerate(sizes, 1)]
    batch = pack_written(texts, 12, 0, torch.device("cpu"))
    expected = sorted(token for text in texts for token in text.token_ids[text.loss_mask].tolist())
    assert sorted(batch.followers.tolist()) == expected


def test_the_loss_is_the_teachers_divergence_on_the_students_text(inputs: StageInputs, tmp_path: Path) -> None:
    """Against logits of the two models on each text alone, in float64; cross-entropy plays no part."""
    seen = []
    original = pack_written

    def spy(texts: list[WrittenSequence], *rest: object):
        seen.append(texts)
        return original(texts, *rest)  # type: ignore[arg-type]

    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.distillation.on_policy.pack_written", spy)
        config = on_policy(1.0, epochs=0.05, alpha=0.6)
        distill(inputs, config, StageContext(tmp_path / "out", events=recorder))
    student, teacher = (load_model(inputs.require(role, "test")).model.double() for role in ("model", "teacher"))
    total, count = 0.0, 0
    for text in seen[0]:
        ids = torch.from_numpy(text.token_ids)[None]
        with torch.no_grad():
            log_p, log_q = (model(ids).logits[0, :-1].log_softmax(-1) for model in (teacher, student))
        rows = torch.from_numpy(text.loss_mask[1:])
        total += float((log_p.exp() * (log_p - log_q)).sum(-1)[rows].sum())
        count += int(rows.sum())
    assert count > 20
    assert losses(recorder)[0] == pytest.approx(0.6 * total / count, rel=1e-4)


def test_the_seed_decides_and_a_resumed_run_ends_with_the_same_bits(inputs: StageInputs, tmp_path: Path) -> None:
    config = on_policy(0.5)
    steps = [student_writes(0.5, 3, step) for step in range(6)]
    assert 0 < sum(steps) < 6
    expected = distill(inputs, config, StageContext(tmp_path / "one", seed=3))
    other = distill(inputs, config, StageContext(tmp_path / "other", seed=4))
    assert not torch.equal(*(weights(each)["model.norm.weight"] for each in (expected, other)))

    def stop(event: object) -> None:
        if event.kind == "progress" and "loss" in event.values and event.completed == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        distill(inputs, config, StageContext(tmp_path / "out", seed=3, events=stop, work_directory=work))
    torch.manual_seed(77)
    made = distill(inputs, config, StageContext(tmp_path / "out", seed=3, work_directory=work))
    assert_same_weights(made, expected)


def test_a_student_learns_on_its_own_text(inputs: StageInputs, tmp_path: Path) -> None:
    recorder = Recorder()
    config = on_policy(1.0, epochs=6, learning_rate=5e-3)
    distill(inputs, config, StageContext(tmp_path / "out", events=recorder))
    found = losses(recorder)
    assert found[-1] < 0.5 * found[0]


def chat_data(directory: Path) -> Artifact:
    turns = [
        [{"role": "user", "content": f"sea {n}"}, {"role": "assistant", "content": "shore"}, *extra]
        for n in range(40)
        for extra in [[{"role": "user", "content": "on"}, {"role": "assistant", "content": "man"}] if n % 2 else []]
    ]
    source = directory / "chat.jsonl"
    source.write_text("\n".join(json.dumps({"messages": each}) for each in turns))
    config = PrepareConfig(source=str(source), form="chat")
    return prepare(StageInputs(), config, StageContext(directory / "chat"))


def test_the_teachers_answers_become_the_training_text(speaker: Artifact, tmp_path: Path) -> None:
    data = chat_data(tmp_path)
    config = WriteConfig(max_new_tokens=8, temperature=0, precision="float32")
    made = write(StageInputs(teacher=speaker, data=data), config, StageContext(tmp_path / "out", events=Recorder()))
    before, after = PreparedData.open(data), PreparedData.open(made)
    assert made.kind == "data"
    assert made.lineage.inputs.keys() == {"teacher", "data"}
    assert list(after.documents("test")) == list(before.documents("test"))
    loaded = load_model(speaker)
    ends = loaded.model.generation_config.eos_token_id
    rows = dict(zip([d.messages[0] for d in before.documents("train")], before.documents("train"), strict=True))  # type: ignore[union-attr]
    for document in list(after.documents("train"))[:5]:
        assert isinstance(document, Conversation)
        assert [turn.role for turn in document.messages] == ["user", "assistant"]
        turn = rows[document.messages[0]].messages[0]  # type: ignore[union-attr]
        text = loaded.tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content}], tokenize=False, add_generation_prompt=True
        )
        ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = loaded.model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=ends)
        said = loaded.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        assert document.messages[1].content == said
    assert after.rows["train"] == len(list(after.documents("train")))


def prompt_data(directory: Path) -> Artifact:
    for name, words in (("learned", "sea"), ("judged", "coast")):
        rows = [json.dumps({"question": f"{words} {n}"}) for n in range(20)]
        (directory / f"{name}.jsonl").write_text("\n".join(rows))
    (directory / "text.txt").write_text("\n".join(f"the old man and the sea {n}" for n in range(20)))
    learned, judged = (
        DataSource(source=str(directory / f"{name}.jsonl"), form="prompt", columns=Columns(prompt="question"))
        for name in ("learned", "judged")
    )
    config = PrepareConfig(
        source=str(directory / "text.txt"), form="text", unlabelled=learned, extra_tests={"judged": judged}
    )
    return prepare(StageInputs(), config, StageContext(directory / "prompts"))


def test_prompts_become_conversations_and_the_rest_stays(speaker: Artifact, tmp_path: Path) -> None:
    data = prompt_data(tmp_path)
    inputs, config = StageInputs(teacher=speaker, data=data), WriteConfig(max_new_tokens=6, precision="float32")
    after = PreparedData.open(write(inputs, config, StageContext(tmp_path / "out")))
    assert after.forms == {
        "test": "text",
        "judged": "chat",
        "validation": "text",
        "train": "text",
        "unlabelled": "chat",
    }
    assert list(after.documents("train")) == list(PreparedData.open(data).documents("train"))
    for name, word in (("judged", "coast"), ("unlabelled", "sea")):
        for document in after.documents(name):
            assert isinstance(document, Conversation)
            assert [turn.role for turn in document.messages] == ["user", "assistant"]
            assert document.messages[0].content.startswith(word)
    only = write(inputs, config.model_copy(update={"splits": ["judged"]}), StageContext(tmp_path / "only"))
    assert PreparedData.open(only).forms["unlabelled"] == "prompt"
    wrong = config.model_copy(update={"splits": ["jugded"]})
    with pytest.raises(DataError, match=r"no split 'jugded'. Did you mean 'judged'"):
        write(inputs, wrong, StageContext(tmp_path / "wrong"))


def test_answers_that_were_cut_are_told_and_may_be_dropped(speaker: Artifact, tmp_path: Path) -> None:
    inputs = StageInputs(teacher=speaker, data=prompt_data(tmp_path))
    recorder = Recorder()
    config = WriteConfig(max_new_tokens=40, temperature=3.0, precision="float32", splits=["unlabelled"])
    kept = PreparedData.open(write(inputs, config, StageContext(tmp_path / "kept", events=recorder)))
    told = next(event.text for event in recorder.events if event.kind == "message" and "cut at 40" in event.text)
    cut = int(told.split(" cut")[0].split()[-1])
    assert 0 < cut < kept.rows["unlabelled"]
    drop = config.model_copy(update={"cut_answers": "drop"})
    left = PreparedData.open(write(inputs, drop, StageContext(tmp_path / "left")))
    assert left.rows["unlabelled"] == kept.rows["unlabelled"] - cut
    work = tmp_path / "work"
    short = drop.model_copy(update={"max_new_tokens": 1})
    with pytest.raises(DataError, match=r"all \d+ answers to 'unlabelled' were cut at 1 tokens"):
        write(inputs, short, StageContext(tmp_path / "none", work_directory=work))
    again = write(inputs, drop, StageContext(tmp_path / "again", work_directory=work))
    assert PreparedData.open(again).rows == left.rows, "the advice helps: what was cut is not taken up again"


@pytest.mark.parametrize("signal", ["online", "top-k"])
def test_a_student_learns_from_the_answers_beside_the_text(speaker: Artifact, tmp_path: Path, signal: str) -> None:
    data = prompt_data(tmp_path)
    inputs = StageInputs(model=speaker, teacher=speaker, data=data)
    config = DistillConfig(
        epochs=1, batch_size=4, precision="float32", language=LanguageConfig(sequence_length=64, signal=signal, k=8)
    )
    with pytest.raises(DataError, match=r"split 'unlabelled', row 0 .*a prompt without an answer"):
        distill(inputs, config, StageContext(tmp_path / "early"))
    written = write(inputs, WriteConfig(max_new_tokens=6, precision="float32"), StageContext(tmp_path / "written"))
    steps = {}
    for use in (True, False):
        recorder = Recorder()
        chosen = config.model_copy(update={"use_unlabelled": use})
        context = StageContext(tmp_path / f"out-{use}", events=recorder)
        distill(StageInputs(model=speaker, teacher=speaker, data=written), chosen, context)
        steps[use] = len(losses(recorder))
    assert steps[True] > steps[False]


def test_a_stopped_writing_goes_on_where_it_was(
    speaker: Artifact, language_data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_text, "PART_ROWS", 16)
    inputs = StageInputs(teacher=speaker, data=language_data)
    config = WriteConfig(max_new_tokens=6, precision="float32", prompt_tokens=3)
    expected = write(inputs, config, StageContext(tmp_path / "one", seed=5))

    def stop(event: object) -> None:
        if event.kind == "progress" and event.completed == 32:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        write(inputs, config, StageContext(tmp_path / "out", seed=5, events=stop, work_directory=work))
    before = {file: file.stat().st_mtime_ns for file in work.glob("written/*/train/*")}
    assert len(before) == 2
    hotter = config.model_copy(update={"temperature": 1.5})
    changed = write(inputs, hotter, StageContext(tmp_path / "hotter", seed=5, work_directory=work))
    assert changed.digest == write(inputs, hotter, StageContext(tmp_path / "hotter-alone", seed=5)).digest
    made = write(inputs, config, StageContext(tmp_path / "out", seed=5, work_directory=work))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert made.digest == expected.digest
    other = write(inputs, config, StageContext(tmp_path / "other", seed=6))
    assert other.digest != expected.digest


def test_answers_take_the_place_of_the_first_thing_that_is_learned() -> None:
    assert answered(PlainText("a b"), "a c") == PlainText("a c")
    assert answered(Completion("a", "b"), "c") == Completion("a", "c")
    greeting, question, answer = Message("assistant", "hi"), Message("user", "a"), Message("assistant", "b")
    talk = Conversation((greeting, question, answer, question, answer))
    assert answered(talk, "c") == Conversation((greeting, question, Message("assistant", "c")))
    assert answered(Conversation((question,)), "c") == Conversation((question, Message("assistant", "c")))
    greeted = Conversation((greeting, question))
    assert answered(greeted, "c") == Conversation((greeting, question, Message("assistant", "c")))


def test_what_cannot_write_is_refused(speaker: Artifact, language_data: Artifact, tmp_path: Path) -> None:
    classifier = pico_model_artifact(tmp_path)
    with pytest.raises(UnsupportedError, match="'text-classification', expected a causal language model"):
        write(StageInputs(teacher=classifier, data=language_data), WriteConfig(), StageContext(tmp_path / "out"))
    long = WriteConfig(max_new_tokens=500)
    with pytest.raises(UsageError, match="expected at most 128 together, the model's context"):
        write(StageInputs(teacher=speaker, data=language_data), long, StageContext(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
