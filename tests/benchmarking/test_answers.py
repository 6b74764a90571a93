"""Whether a model answers: an empty answer is found, a repeated one is told, and both are judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.artifact import Artifact
from edgekit.benchmarking.answers import Asked, Written, judge_answers, prompts_of, repetition, write_answer
from edgekit.benchmarking.result_files import read_quality
from edgekit.benchmarking.stage import EvaluateConfig, evaluate
from edgekit.contract import StageContext, StageInputs
from edgekit.data.documents import Conversation, Message, PlainText
from edgekit.data.prepared import PreparedData
from edgekit.data.stage import PrepareConfig, prepare
from edgekit.models.source import LoadedModel
from edgekit.results import LanguageQuality
from edgekit.runtimes.torch_generation import TorchGenerationSession
from tests.pico import publish_model
from tests.pico_decoders import CONTEXT, pico_byte_tokenizer, pico_decoder

QUESTION = [{"role": "user", "content": "Where is the sea?"}, {"role": "assistant", "content": "By the shore."}]


def chat_data(directory: Path) -> Artifact:
    rows = [[{"role": "user", "content": f"Where is {n}?"}, QUESTION[1]] for n in range(30)]
    (directory / "chat.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    config = PrepareConfig(source=str(directory / "chat.jsonl"), form="chat", test=0.2)
    return prepare(StageInputs(), config, StageContext(directory / "data"))


def always(token: int) -> LoadedModel:
    """Returns a model that says one token whatever it reads: every token is alike to it, and no layer adds anything."""
    loaded = pico_decoder("llama", seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(1.0)
        for name, weight in loaded.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        head = loaded.model.get_output_embeddings().weight
        head.zero_()
        head[token] = 1.0
    return loaded


def session_of(loaded: LoadedModel) -> TorchGenerationSession:
    return TorchGenerationSession(loaded.model, loaded.task.max_length)


def test_an_answer_is_the_likeliest_text_and_ends_where_generate_ends_it() -> None:
    loaded = pico_decoder("llama", seed=3)
    ids = loaded.tokenizer("the old man and the sea")["input_ids"]
    with torch.no_grad():
        expected = loaded.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = expected[0, len(ids) :].tolist()
    whole = write_answer(session_of(loaded), loaded.tokenizer, set(), ids, 8)
    assert (whole.ids, whole.ended) == (expected, False)
    first = expected.index(expected[3])
    cut = write_answer(session_of(loaded), loaded.tokenizer, {expected[3]}, ids, 8)
    assert (cut.ids, cut.ended) == (expected[:first], True)


def test_an_answer_stops_at_the_context() -> None:
    loaded = pico_decoder("llama", seed=3)
    written = write_answer(session_of(loaded), loaded.tokenizer, set(), [5] * (CONTEXT - 3), 48)
    assert len(written.ids) == 3


def test_a_prompt_without_room_for_an_answer_is_passed_over(tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": "sea " * (200 if n == 0 else 1) + str(n)}, QUESTION[1]] for n in range(30)]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    config = PrepareConfig(source=str(tmp_path / "chat.jsonl"), form="chat", test=0.8)
    data = prepare(StageInputs(), config, StageContext(tmp_path / "data"))
    model = publish_model(pico_decoder("llama", seed=3), tmp_path / "model")
    settings = EvaluateConfig(answers=50, answer_tokens=2, max_tokens=CONTEXT)
    quality = read_quality(evaluate(StageInputs(model=model, data=data), settings, StageContext(tmp_path / "quality")))
    assert isinstance(quality, LanguageQuality)
    assert quality.answers is not None
    whole = [document for document in PreparedData.open(data).documents("test") if isinstance(document, Conversation)]
    short = [talk for talk in whole if len(talk.messages[0].content) < 100]
    assert len(short) < len(whole)
    assert quality.answers.prompts == len(short)


def test_prompts_are_the_turns_before_the_first_answer() -> None:
    tokenizer = pico_byte_tokenizer()
    system, question, answer = Message("system", "Be brief."), Message("user", "Where?"), Message("assistant", "Here.")
    documents = [
        PlainText("sea"),
        Conversation((system, question, answer, question, answer)),
        Conversation((question,)),
        Conversation((Message("assistant", "Hello."), question, answer)),
        Conversation((system, Message("assistant", "Hello."))),
    ]
    asked = list(prompts_of(documents, tokenizer, "here", 200))
    assert [one.prompt for one in asked] == ["Where?", "Where?"], "a greeting answers nothing"
    assert list(prompts_of(documents, tokenizer, "here", 5)) == []
    assert (asked[0].prompt, asked[0].expected) == ("Where?", "Here.")
    turns = [{"role": turn.role, "content": turn.content} for turn in (system, question)]
    assert asked[0].ids == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_a_model_that_ends_at_once_is_found_out(tmp_path: Path) -> None:
    tokenizer, data = pico_byte_tokenizer(), chat_data(tmp_path)
    found = {}
    for name, token in (("silent", tokenizer.eos_token_id), ("talking", tokenizer("a")["input_ids"][-1])):
        model = publish_model(always(token), tmp_path / name)
        config = EvaluateConfig(answers=5, answer_tokens=12)
        quality = read_quality(
            evaluate(StageInputs(model=model, data=data), config, StageContext(tmp_path / f"q-{name}"))
        )
        assert isinstance(quality, LanguageQuality)
        assert quality.answers is not None
        found[name] = quality.answers
    assert (found["silent"].answered, found["silent"].prompts) == (0, 5)
    assert found["silent"].examples[0].answer == ""
    assert found["silent"].examples[0].expected == QUESTION[1]["content"]
    talking = found["talking"]
    assert (talking.answered, talking.ended) == (1, 0)
    assert talking.repetition == pytest.approx(1 - 1 / 9), "12 tokens, all alike: one of 9 4-grams is new"
    assert talking.examples[0].answer == "a" * 12


def test_nothing_is_asked_where_there_is_no_conversation_or_where_none_is_wanted(tmp_path: Path) -> None:
    model = publish_model(pico_decoder("llama", seed=3), tmp_path / "model")
    data = chat_data(tmp_path)
    inputs = StageInputs(model=model, data=data)
    quality = read_quality(evaluate(inputs, EvaluateConfig(answers=0, max_rows=2), StageContext(tmp_path / "none")))
    assert isinstance(quality, LanguageQuality)
    assert quality.answers is None


def test_shares_are_of_what_was_asked_and_of_what_was_said() -> None:
    asked = [Asked([1], f"Where {n}?", "Here.") for n in range(6)]
    written = [Written([], "", True), Written([7], "  ", True), *[Written([1, 2], "sea", n == 0) for n in range(4)]]
    found = judge_answers(asked, written, 9)
    assert (found.prompts, found.answered, found.ended, found.max_tokens) == (6, 4 / 6, 1 / 4, 9)
    assert found.answered_interval.low < 4 / 6 < found.answered_interval.high
    assert [example.prompt for example in found.examples] == [one.prompt for one in asked[:4]]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repetition_is_the_share_of_4_grams_seen_before(ids: list[int]) -> None:
    seen, repeated, total = set[tuple[int, ...]](), 0, 0
    for start in range(len(ids) - 3):
        gram = tuple(ids[start : start + 4])
        repeated += gram in seen
        seen.add(gram)
        total += 1
    assert repetition(ids) == pytest.approx(repeated / total if total else 0.0)
    assert np.isfinite(repetition(ids))
