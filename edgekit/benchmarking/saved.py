"""Reads a saved result: a measurement, the artifact that holds one, a `build.json`, or the build's directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit.benchmarking.changes import Saved
from edgekit.errors import UsageError
from edgekit.results import AnyMeasurement, BuildResult, GenerationMeasurement, Measurement

_IN_DIRECTORY = ("measurement.json", "build.json")
_SCHEMA = 1
_Way = tuple[int | str, ...]


def read_saved(path: Path, *, any_schema: bool = False) -> Saved:
    """Returns what `path` holds; with `any_schema` the fields of another schema that this version knows.

    Raises:
        UsageError: it is no such file, or of another schema.
    """
    file = path if not path.is_dir() else next((path / name for name in _IN_DIRECTORY if (path / name).is_file()), path)
    content = _read_object(file)
    schema = content.get("schema", _SCHEMA)
    if schema != _SCHEMA and not any_schema:
        raise UsageError(
            f"{file}: found schema {schema!r}, expected {_SCHEMA}: another version of edgekit wrote it. "
            "Measure again with this one, or compare what both know with --anyway."
        )
    kind = _kind_of(content, file)
    try:
        return kind.model_validate(_known_fields(kind, content) if any_schema else content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{file}: {where}: {first['msg']}. Expected what this version of edgekit writes: measure again."
        ) from error


def read_baseline(path: Path, *, any_schema: bool = False) -> AnyMeasurement:
    """Returns the one measurement that `path` holds; of a build that of its only export.

    Raises:
        UsageError: it is no such file, of another schema, or a build with none or several measurements.
    """
    saved = read_saved(path, any_schema=any_schema)
    if not isinstance(saved, BuildResult):
        return saved
    found = [export.measurement for export in saved.exports if export.measurement is not None]
    if len(found) != 1:
        raise UsageError(
            f"{path}: found a build with {len(found)} measurements, expected one. Give the measurement.json of one of "
            "its exports, which is in artifacts/bench-*."
        )
    return found[0]


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file}: cannot be read as JSON ({error}). Expected a measurement.json, a build.json, or a directory "
            "that holds one."
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: found a JSON {type(content).__name__}, expected a measurement or a build.")
    return content


def _kind_of(
    content: dict[str, Any], file: Path
) -> type[BuildResult] | type[Measurement] | type[GenerationMeasurement]:
    if "exports" in content:
        return BuildResult
    if "depths" in content:
        return GenerationMeasurement
    if "samples_ms" in content:
        return Measurement
    raise UsageError(
        f"{file}: found neither `samples_ms`, `depths` nor `exports`, expected a measurement or a build: "
        "measurement.json of `edgekit bench MODEL OUT`, or build.json of `edgekit build`."
    )


def _known_fields(kind: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content with this version's schema and without the keys that this version does not know.

    Where a value may be of several kinds, each kind that was tried tells what it does not know: a key goes when none
    knows it.
    """
    content["schema"] = _SCHEMA
    tried: dict[_Way, set[_Way]] = {}
    unknown: dict[_Way, set[_Way]] = {}
    try:
        kind.model_validate(content)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            *above, key = problem["loc"]
            way, kinds = _follow(content, above)
            tried.setdefault(way, set()).add(kinds)
            if problem["type"] == "extra_forbidden":
                unknown.setdefault((*way, key), set()).add(kinds)
    for way, kinds_without in unknown.items():
        if kinds_without == tried[way[:-1]]:
            _drop(content, way)
    return content


def _follow(value: Any, location: Sequence[int | str]) -> tuple[_Way, _Way]:
    """Returns the keys of a location that lead through `value`, and the other words, which name the kinds tried."""
    way, kinds = [], []
    for part in location:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]  # type: ignore[index]
            way.append(part)
        else:
            kinds.append(part)
    return tuple(way), tuple(kinds)


def _drop(value: Any, way: _Way) -> None:
    for part in way[:-1]:
        value = value[part]
    value.pop(way[-1], None)
