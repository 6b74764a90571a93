"""`build.json` as text, and its published JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from edgekit.results import BuildResult


class _EveryKeyIsWritten(GenerateJsonSchema):
    """A generator for what edgekit writes: fields with a default are there, too."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Returns True: no key is ever left out."""
        return True


def render_json(result: BuildResult) -> str:
    """Returns the content of `build.json`: every key in the order of its class, raw samples included."""
    return result.model_dump_json(indent=2) + "\n"


def build_schema() -> str:
    """Returns the JSON Schema of `build.json`, the content of `docs/build.schema.json`."""
    schema = BuildResult.model_json_schema(by_alias=True, mode="serialization", schema_generator=_EveryKeyIsWritten)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgekit build.json"}
    return json.dumps({**head, **{key: value for key, value in schema.items() if key != "title"}}, indent=2) + "\n"
