"""Multiple-choice questions: rows that are wrong, scores by hand, and the whole evaluation on a pico model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit.benchmarking.multiple_choice import answer_questions, choice_score, judge_choices
from edgekit.benchmarking.questions import QuestionsConfig, read_questions
from edgekit.benchmarking.result_files import read_quality
from edgekit.data.conversations import encode_choice
from edgekit.errors import DataError, ModelError
from edgekit.events import ignore
from tests.pico import publish_model
from tests.pico_decoders import CONTEXT, pico_decoder
from tests.pico_language import pico_language_data

GOOD = {"question": "What is a river?", "choices": ["a body of water", "a king"], "answer": 0}


def write(directory, *rows):
    file = directory / "questions.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return QuestionsConfig(source=str(file))


def test_rows_are_read_with_the_answer_as_position_or_text(tmp_path):
    config = write(tmp_path, GOOD, "", {**GOOD, "answer": "a king"})
    first, second = read_questions(config)
    assert first.prompt == "Question: What is a river?\nAnswer:"
    assert (first.choices, first.answer, second.answer) == (("a body of water", "a king"), 0, 1)
    assert second.place.endswith("questions.jsonl, line 3")
    assert len(read_questions(config.model_copy(update={"max_rows": 1}))) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", "line 2: is not JSON"),
        ("[1]", "line 2: found a JSON list, expected an object."),
        ({"question": "a", "choices": ["b", "c"]}, "line 2: lacks 'answer'."),
        ({**GOOD, "question": " "}, "line 2: question: found ' ', expected text."),
        ({**GOOD, "choices": ["a"]}, "line 2: choices: found ['a'], expected a list of at least 2 texts."),
        ({**GOOD, "choices": ["a", "a"]}, "expected different texts, none empty."),
        ({**GOOD, "choices": ["a", ""]}, "expected different texts, none empty."),
        ({**GOOD, "answer": 2}, "line 2: answer: found 2, expected 0 to 1."),
        ({**GOOD, "answer": -1}, "line 2: answer: found -1, expected 0 to 1."),
        ({**GOOD, "answer": True}, "line 2: answer: found True, expected a position counted from 0"),
        ({**GOOD, "answer": "a queen"}, "line 2: answer: found 'a queen'"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path, row, message):
    with pytest.raises(DataError) as caught:
        read_questions(write(tmp_path, GOOD, row))
    assert message in str(caught.value)
    assert str(tmp_path / "questions.jsonl") in str(caught.value)


def test_all_wrong_rows_are_counted_and_the_first_listed(tmp_path):
    with pytest.raises(DataError, match="8 wrong rows, the first 5 of them:") as caught:
        read_questions(write(tmp_path, GOOD, *["{"] * 8))
    assert [f"line {number}:" in str(caught.value) for number in (2, 6, 7)] == [True, True, False]


def test_a_file_that_is_missing_or_empty_is_told(tmp_path):
    with pytest.raises(DataError, match="not found; expected a"):
        read_questions(QuestionsConfig(source=str(tmp_path / "none.jsonl")))
    with pytest.raises(DataError, match="holds no question"):
        read_questions(write(tmp_path, ""))


def test_the_score_of_a_choice_by_hand():
    # Two tokens of three; the second is predicted with 1/2, the third with 1/4, over 3 bytes.
    logits = torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [1.0, 1.0, 1.0]]))
    assert choice_score(logits, [0, 1, 2], [False, True, True], 3) == pytest.approx(math.log(1 / 8) / 3)
    assert choice_score(logits, [0, 1, 2], [False, False, True], 1) == pytest.approx(math.log(1 / 4))


@given(st.lists(st.floats(-5, 5), min_size=12, max_size=12), st.floats(-50, 50))
def test_a_score_does_not_depend_on_a_constant_added_to_the_logits(values, constant):
    logits = torch.tensor(values).reshape(4, 3)
    learned = [False, False, True, True]
    score = choice_score(logits, [0, 1, 2, 0], learned, 5)
    assert score == pytest.approx(choice_score(logits + constant, [0, 1, 2, 0], learned, 5), abs=1e-4)
    assert score <= 0


def test_the_score_is_torchs_own_cross_entropy_over_bytes():
    loaded = pico_decoder()
    encoded = encode_choice("Where is the sea?", " by the shore", loaded.tokenizer, "here")
    assert loaded.tokenizer.decode([t for t, on in zip(encoded.ids, encoded.learned, strict=True) if on]) == (
        " by the shore"
    )
    ids = torch.tensor([encoded.ids])
    labels = torch.where(torch.tensor([encoded.learned]), ids, -100)
    with torch.inference_mode():
        found = loaded.model.double()(ids, labels=labels)
    expected = -float(found.loss) * sum(encoded.learned) / 12
    assert choice_score(found.logits[0], encoded.ids, encoded.learned, 12) == pytest.approx(expected, rel=1e-6)


def test_each_reader_answers_and_the_teacher_is_compared_pair_by_pair(tmp_path):
    tokenizer = pico_decoder().tokenizer
    questions = read_questions(write(tmp_path, GOOD, {**GOOD, "answer": 1}, GOOD))

    def likes(letter):
        favourite = tokenizer(letter)["input_ids"][0]

        def read(ids):
            logits = torch.zeros(len(ids), 300)
            logits[:, favourite] = 9.0
            return logits

        return read

    water, king = answer_questions(questions, [likes("w"), likes("k")], tokenizer, CONTEXT, ignore)
    assert (water.tolist(), king.tolist()) == ([True, False, True], [False, True, False])
    quality = judge_choices(questions, water, king, source_digest="x")
    assert (quality.accuracy, quality.teacher_accuracy) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (quality.accuracy_change, quality.chance, quality.questions) == (pytest.approx(1 / 3), 0.5, 3)
    assert quality.accuracy_interval.low < 2 / 3 < quality.accuracy_interval.high
    assert quality.accuracy_change_interval.low < 1 / 3 < quality.accuracy_change_interval.high


def test_a_question_longer_than_the_context_names_its_line(tmp_path):
    loaded = pico_decoder()
    config = write(tmp_path, GOOD, {**GOOD, "question": "sea " * 200})

    def reader(ids: list[int]) -> torch.Tensor:
        return torch.zeros(len(ids), 300)

    with pytest.raises(DataError, match=r"line 2: choice 0: found \d+ tokens with the question, expected at most 128"):
        answer_questions(read_questions(config), [reader], loaded.tokenizer, CONTEXT, ignore)


def test_logits_that_are_no_numbers_choose_nothing(tmp_path):
    def reader(ids: list[int]) -> torch.Tensor:
        return torch.full((len(ids), 300), float("nan"))

    questions = read_questions(write(tmp_path, GOOD))
    with pytest.raises(ModelError, match=r"line 1: found logits of the model or its teacher that are not finite"):
        answer_questions(questions, [reader], pico_decoder().tokenizer, CONTEXT, ignore)


def test_the_stage_evaluates_questions_beside_text_with_the_teacher(tmp_path):
    model, teacher = (publish_model(pico_decoder(seed=seed), tmp_path / f"model-{seed}") for seed in (0, 1))
    asked = write(tmp_path, *[GOOD] * 4)
    config = edgekit.EvaluateConfig(max_rows=2, max_tokens=16, multiple_choice=asked)
    data = pico_language_data(tmp_path)
    quality = read_quality(edgekit.evaluate(model, config, teacher=teacher, data=data, out=tmp_path / "quality"))
    assert quality.multiple_choice.questions == 4
    assert quality.multiple_choice.accuracy in (0, 1), "four times the same question"
    assert quality.multiple_choice.teacher_accuracy in (0, 1)
    assert len(quality.multiple_choice.source_digest) == 64
    missing = edgekit.EvaluateConfig(max_rows=2, multiple_choice={"source": str(tmp_path / "none.jsonl")})
    with pytest.raises((DataError, ModelError), match="not found"):
        edgekit.evaluate(model, missing, data=data, out=tmp_path / "other")
