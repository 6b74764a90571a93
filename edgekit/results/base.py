"""What every result type builds on: strictness, documentation field by field, and the interval."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """Base of every result: frozen, documented field by field, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SavedResult(Result):
    """Base of the results that are files of their own."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this schema."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True, serialize_by_alias=True
    )


class Interval(Result):
    """A confidence interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float = 0.95
    """Coverage, 0 to 1."""
