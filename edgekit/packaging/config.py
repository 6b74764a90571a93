"""The configuration of the stage `package`. Names and paths in it are read when it is made, never by the stage.

The `json_schema_input_type` of a field is what a command line or a recipe may give instead of the whole value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from edgekit.contract import StageConfig
from edgekit.errors import UsageError
from edgekit.packaging.facts import BundleFacts
from edgekit.results import Unverified
from edgekit.target import Target, load_target


def _read_target(value: object) -> object:
    """Turns a target's name or path into the target."""
    try:
        return load_target(str(value)) if isinstance(value, (str, Path)) else value
    except UsageError as error:
        raise ValueError(str(error)) from error


def _read_facts(value: object) -> object:
    """Turns paths of parity, quality and measurement artifacts into the facts that they hold."""
    paths = [value] if isinstance(value, (str, Path)) else value
    if not isinstance(paths, list):
        return value
    try:
        return BundleFacts.read([Path(path) for path in paths])
    except UsageError as error:
        raise ValueError(str(error)) from error


class PackageConfig(StageConfig):
    """How a bundle is made."""

    target: Annotated[Target, BeforeValidator(_read_target, json_schema_input_type=str)]
    """The device: a built-in target's name, the path of a target file, or a target."""
    name: str = Field(default="model", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the bundle, used in paths."""
    description: str = ""
    """One paragraph for the model card: what the model is for."""
    license: str = ""
    """SPDX identifier of the licence of the weights."""
    facts: Annotated[BundleFacts, BeforeValidator(_read_facts, json_schema_input_type=list[str])] = BundleFacts()
    """The evidence: paths of parity, quality and measurement artifacts, or the facts themselves."""
    unverified: Literal["refuse", "allow"] = "refuse"
    """`allow` bundles a format that only other systems run (`coreml`) without a check, and marks the bundle."""

    def shipped_with(self) -> str:
        """Returns the name of the runtime that ships the export: one that it was checked with, or is for."""
        if isinstance(self.facts.parity, Unverified):
            return self.facts.parity.runtime
        return self.checked_with()[0]

    def checked_with(self) -> list[str]:
        """Returns the names of the runtimes under which the export passed, the one that ships it first."""
        parities = [parity for parity in (self.facts.parity, *self.facts.other_parities) if parity is not None]
        return [parity.runtime.split()[0] for parity in parities if parity.passed]
