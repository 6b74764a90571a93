"""Turns pydantic's errors into edgekit's: file, key, what was found, what was expected, the nearest valid key."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from edgekit.spelling import did_you_mean


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """Returns one line a problem: `where: key: found ..., expected ...`."""
    lines = []
    for problem in error.errors(include_url=False):
        location = [part for part in problem["loc"] if not str(part).startswith(("function-", "tagged-union"))]
        key = ".".join(str(part) for part in location)
        lines.append(f"{where}: {f'{key}: ' if key else ''}{_reason(dict(problem), model, location)}")
    return "\n".join(lines)


def _reason(problem: dict[str, Any], model: type[BaseModel], location: list[Any]) -> str:
    kind, found = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        valid = _valid_keys(model, location[:-1])
        return f"unknown key.{did_you_mean(str(location[-1]), valid)} Valid keys: {', '.join(sorted(valid))}."
    if kind == "missing":
        return "missing, and it has no default. Add it."
    message: str = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error":
        return message
    return f"found {_shorten(found)} ({type(found).__name__}), expected {message}."


def _valid_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Walks `location` through nested models and returns the keys valid there."""
    current: Any = model
    for part in location:
        if isinstance(part, int) or not _is_model(current) or part not in current.model_fields:
            continue
        current = _inner_model(current.model_fields[part].annotation) or current
    return list(current.model_fields) if _is_model(current) else []


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if _is_model(annotation):
        return annotation  # type: ignore[no-any-return]
    for argument in get_args(annotation):
        inner = _inner_model(argument)
        if inner is not None:
            return inner
    return None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
