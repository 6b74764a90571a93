"""Options that several commands share, and the way from flags to a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

if TYPE_CHECKING:  # the command line shows its help without pydantic
    from cyclopts import CycloptsError

    from edgekit.contract import StageConfig

AsJson = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        help="Print one JSON object a line, for each event, the result and an error, instead of a display.",
    ),
]
Offline = Annotated[bool, Parameter(negative="", help="Forbid any network access.")]
Seed = Annotated[int, Parameter(help="The only source of randomness.")]

Config = TypeVar("Config", bound="StageConfig")


def checked_config(kind: type[Config], values: Mapping[str, Any], command: str) -> Config:
    """Returns the config that flags spell.

    Raises:
        UsageError: a value is not valid; one line for each, with the command's name.
    """
    from pydantic import ValidationError

    from edgekit.errors import UsageError
    from edgekit.validation import explain

    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, kind, command)) from error


def explain_usage(error: CycloptsError, command: str) -> str:
    """Returns what is wrong with the words of a command: one line for each flag whose value is not valid."""
    from pydantic import ValidationError

    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error)
    lines = []
    for problem in cause.errors(include_url=False):
        flag = "--" + ".".join(str(part).replace("_", "-") for part in problem["loc"])
        found, expected = problem["input"], problem["msg"].removeprefix("Input should be ")
        if problem["type"] == "model_type":
            expected = f"flags for its parts: {flag}.NAME, as `{command} --help` lists them"
        lines.append(f"{command}: {flag}: found {found!r}, expected {expected}.")
    return "\n".join(lines)
