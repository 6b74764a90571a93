"""Checks a value against a JSON Schema, for the keywords that edgekit's published schemas use; others are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {
    *("$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum"),
    *("exclusiveMinimum", "items", "maximum", "minItems", "minLength", "minimum", "pattern", "properties"),
    *("required", "title", "type"),
}


def problems(value: Any, schema: Any, whole: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yields one sentence for each place at which `value` is not what `schema` says; `whole` holds the `$defs`."""
    if schema is True:
        return
    unknown = set(schema) - _KNOWN
    assert not unknown, f"this checker does not know {unknown}"
    if "$ref" in schema:
        yield from problems(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, where)
    if "anyOf" in schema and not any(not list(problems(value, each, whole)) for each in schema["anyOf"]):
        yield f"{where}: none of {len(schema['anyOf'])} alternatives"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    kinds = _TYPES.get(schema.get("type", ""))
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        yield f"{where}: {value!r} is no {schema['type']}"
        return
    yield from _inside(value, schema, whole, where)


def _inside(value: Any, schema: dict[str, Any], whole: dict[str, Any], where: str) -> Iterator[str]:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{where}.{key}: missing" for key in schema.get("required", []) if key not in value)
        for key, inner in value.items():
            allowed = properties.get(key, schema.get("additionalProperties", True))
            if allowed is False:
                yield f"{where}.{key}: not allowed"
            else:
                yield from problems(inner, allowed, whole, f"{where}.{key}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where}: {len(value)} items"
        for index, inner in enumerate(value):
            yield from problems(inner, schema.get("items", True), whole, f"{where}.{index}")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where}: {value} is out of range"
    if is_number and "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        yield f"{where}: {value} is not above {schema['exclusiveMinimum']}"
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            yield f"{where}: {value!r} is too short"
        if not re.search(schema.get("pattern", ""), value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
