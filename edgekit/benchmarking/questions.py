"""Multiple-choice questions in a JSON-lines file, checked row by row. How a model answers is `multiple_choice.py`'s."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from edgekit.artifact import hash_file
from edgekit.contract import StageConfig
from edgekit.errors import DataError, UsageError
from edgekit.resources import is_package_resource, package_resource

_BLANK = "{question}"
_FEWEST = 2
_SHOWN = 5


class QuestionsConfig(StageConfig):
    """Questions with a few possible answers each, of which one is right."""

    source: str
    """A local .jsonl file, or pkg:NAME/path of an installed package; a row is `{"question": ..., "choices": [...],
    "answer": ...}`, where `answer` is the right choice's position, counted from 0, or the choice itself."""
    prompt: str = "Question: {question}\nAnswer:"
    """What the model reads; a space and a choice follow it."""
    max_rows: int | None = Field(default=None, ge=1)
    """Questions to take, from the start of the file; all by default."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if _BLANK not in prompt or prompt != prompt.rstrip():
            raise ValueError(f"found {prompt!r}, expected {_BLANK} in it and no white space at its end.")
        return prompt


@dataclass(frozen=True)
class Question:
    """One row."""

    prompt: str
    """What the model reads."""
    choices: tuple[str, ...]
    answer: int
    """Position of the right choice."""
    place: str
    """File and line, for errors."""


def read_questions(config: QuestionsConfig) -> list[Question]:
    """Returns the questions of a file in order.

    Raises:
        DataError: the file is missing or empty, or has rows that are wrong; names each line and what it lacks.
        EnvironmentLacksError: a package is not installed.
    """
    file = _file(config)
    questions: list[Question] = []
    problems: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            questions.append(_read_row(line, config, f"{config.source}, line {number}"))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        count = "1 wrong row" if len(problems) == 1 else f"{len(problems)} wrong rows"
        count += f", the first {_SHOWN} of them" if len(problems) > _SHOWN else ""
        listed = "\n".join(f"- {problem}" for problem in problems[:_SHOWN])
        raise DataError(f"{config.source}: {count}:\n{listed}\n{_EXPECTED}")
    if not questions:
        raise DataError(f"{config.source}: holds no question. {_EXPECTED}")
    return questions[: config.max_rows]


def questions_digest(config: QuestionsConfig) -> str:
    """Returns the SHA-256 of the file, for cache keys.

    Raises:
        DataError: the file is missing.
        EnvironmentLacksError: a package is not installed.
    """
    return hash_file(_file(config))


_EXPECTED = 'Expected rows such as {"question": "...", "choices": ["...", "..."], "answer": 0}.'


def _file(config: QuestionsConfig) -> Path:
    source = config.source
    try:
        file = package_resource(source) if is_package_resource(source) else Path(source).expanduser()
    except UsageError as error:
        raise DataError(str(error)) from error
    if not file.is_file():
        raise DataError(f"{source}: not found; expected a .jsonl file with questions. {_EXPECTED}")
    return file


def _read_row(line: str, config: QuestionsConfig, place: str) -> Question:
    """Returns the question in a line.

    Raises:
        ValueError: it is none; says what was found and what was expected.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"found a JSON {type(row).__name__}, expected an object.")
    missing = [key for key in ("question", "choices", "answer") if key not in row]
    if missing:
        raise ValueError(f"lacks '{missing[0]}'.")
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question: found {question!r}, expected text.")
    if not isinstance(choices, list) or len(choices) < _FEWEST:
        raise ValueError(f"choices: found {choices!r}, expected a list of at least {_FEWEST} texts.")
    if any(not isinstance(choice, str) or not choice.strip() for choice in choices) or len(set(choices)) < len(choices):
        raise ValueError(f"choices: found {choices!r}, expected different texts, none empty.")
    prompt = config.prompt.replace(_BLANK, question.strip())
    return Question(prompt, tuple(choice.strip() for choice in choices), _position(answer, choices), place)


def _position(answer: object, choices: list[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            raise ValueError(f"answer: found {answer}, expected 0 to {len(choices) - 1}.")
        return answer
    if not isinstance(answer, str) or answer not in choices:
        raise ValueError(f"answer: found {answer!r}, expected a position counted from 0, or one of the choices.")
    return choices.index(answer)
