"""Options that several commands share, and the way from flags to a config."""

from __future__ import annotations

import re
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

POSITIONAL_FIELD = "source"
"""The one config field that is an argument, for the stages that read no artifact."""

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
        raise UsageError(_in_flags(explain(error, kind, command), kind)) from error


def _in_flags(text: str, kind: type[StageConfig]) -> str:
    """Returns an explanation whose keys and settings are spelled as the command line takes them."""
    names = "|".join(name for name in kind.model_fields if name != POSITIONAL_FIELD)
    text = re.sub(rf"(?<=: )((?:{names})(?:\.[a-z_]+)*)(?:\.\d+)?(?=: )", lambda key: _flag(key[1]), text)
    text = re.sub(rf"(?<![\w.-])({names}) = ", lambda setting: f"{_flag(setting[1])} ", text)
    # a word with an underscore is a name wherever it stands
    return re.sub(rf"(?<![\w.-])(?=\w*_)({names})(?!\w)", lambda name: _flag(name[1]), text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def explain_usage(error: CycloptsError, command: str) -> str:
    """Returns what is wrong with the words of a command: one line for each flag whose value is not valid."""
    from pydantic import ValidationError

    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error)
    lines = []
    for problem in cause.errors(include_url=False):
        flag = _flag(".".join(map(str, problem["loc"])))
        found, expected = problem["input"], problem["msg"].removeprefix("Input should be ")
        if problem["type"] == "model_type":
            expected = f"flags for its parts: {flag}.NAME, as `{command} --help` lists them"
        lines.append(f"{command}: {flag}: found {found!r}, expected {expected}.")
    return "\n".join(lines)
