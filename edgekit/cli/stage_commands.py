"""One command per row of the stage table, with flags made from the stage's config class.

`edgekit quantize IN OUT --bits 4` is the same call as `edgekit.quantize("IN", QuantizeConfig(bits=4), out="OUT")`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from edgekit.api import run
from edgekit.cli.options import POSITIONAL_FIELD, AsJson, Offline, Seed, checked_config
from edgekit.cli.results import conclude
from edgekit.cli.terminal import listening
from edgekit.contract import StageConfig
from edgekit.stages import STAGES, StageEntry

_ROLE_HELP = {
    "model": "The student, where its tokens are not the teacher's: its tokenizer then cuts the text.",
    "teacher": "The teacher: an artifact.",
    "data": "Prepared data, made by `edgekit prepare`.",
    "signal": "Cached teacher outputs, made by `edgekit capture`.",
    "reference": "The model to compare with: an artifact.",
    "lowering": "How linears on codes are written, as `edgekit autotune` measured it: an artifact.",
}


def __getattr__(name: str) -> Callable[..., int]:
    """Returns the command of the stage called `name`."""
    if name not in STAGES:
        raise AttributeError(name)
    return make_command(STAGES[name])


def make_command(entry: StageEntry) -> Callable[..., int]:
    """Returns the function that the command line calls for a stage; its signature carries the flags."""
    signature = inspect.Signature(_parameters(entry), return_annotation=int)

    def command(*positional: Any, **named: Any) -> int:
        values = signature.bind(*positional, **named).arguments
        roles = {role: values[role] for role in (*entry.needs, *entry.takes) if values.get(role) is not None}
        with listening(as_json=values.get("json", False)) as events:
            artifact = run(
                entry.kind,
                roles.pop("model", None),
                _config(entry, values),
                out=values["out"],
                seed=values.get("seed", 0),
                offline=values.get("offline", False),
                events=events,
                **roles,
            )
        return conclude(artifact, as_json=values.get("json", False))

    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__name__ = command.__qualname__ = entry.kind
    command.__doc__ = entry.summary
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def _config(entry: StageEntry, values: dict[str, Any]) -> StageConfig:
    """Returns the config that the flags spell; what was not given keeps its default."""
    flags: BaseModel | None = values.get("flags")
    given = {} if flags is None else {name: getattr(flags, name) for name in flags.model_fields_set}
    if POSITIONAL_FIELD in values:
        given[POSITIONAL_FIELD] = values[POSITIONAL_FIELD]
    return checked_config(entry.config_class(), given, f"edgekit {entry.kind}")


def _flags(entry: StageEntry) -> type[BaseModel]:
    """Returns the config class less its positional field, without its checks: `_config` runs those."""
    fields: dict[str, Any] = {
        name: _flag(field)
        for name, field in entry.config_class().model_fields.items()
        if not (name == POSITIONAL_FIELD and "model" not in entry.needs)
    }
    numbers = [name for name, (annotation, _) in fields.items() if _is_choice_of_numbers(annotation)]
    checks: dict[str, Any] = {"read_number": field_validator(*numbers, mode="before")(_read_number)} if numbers else {}
    return create_model(f"{entry.config}Flags", __config__=ConfigDict(extra="forbid"), __validators__=checks, **fields)


def _flag(field: FieldInfo) -> tuple[Any, Any]:
    """Returns the type and the field of a flag; a field that is read from a name or a path takes just that."""
    for step in field.metadata:
        if isinstance(step, BeforeValidator) and step.json_schema_input_type is not PydanticUndefined:
            optional = not field.is_required()
            taken = step.json_schema_input_type
            default = None if optional else ...
            return (taken | None if optional else taken), Field(default=default, description=field.description)
    return field.annotation, field


def _is_choice_of_numbers(annotation: Any) -> bool:
    """Returns whether `annotation` has a `Literal` of numbers in it: a word of the command line is not yet one."""
    if get_origin(annotation) is Literal:
        return any(isinstance(choice, int) for choice in get_args(annotation))
    return any(_is_choice_of_numbers(part) for part in get_args(annotation))


def _read_number(value: Any) -> Any:
    """Returns the number that a word spells, and anything else as it is."""
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else value


def _flag_roles(entry: StageEntry) -> list[str]:
    return [role for role in (*entry.needs, *entry.takes) if not (role == "model" and role in entry.needs)]


def _parameters(entry: StageEntry) -> list[inspect.Parameter]:
    """Returns the signature: MODEL (or SOURCE) OUT, the config's fields, the other roles, and the common options."""
    positional, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = []
    if "model" in entry.needs:
        help_text = Parameter(help="The artifact to work on.")
        parameters.append(inspect.Parameter("model", positional, annotation=Annotated[str, help_text]))
    elif POSITIONAL_FIELD in entry.config_class().model_fields:
        help_text = Parameter(help="Where it comes from: a hub id, a path, or pkg:NAME/path.")
        parameters.append(inspect.Parameter(POSITIONAL_FIELD, positional, annotation=Annotated[str, help_text]))
    out_help = Parameter(help="Directory of the artifact to make; must not exist.")
    parameters.append(inspect.Parameter("out", positional, annotation=Annotated[Path, out_help]))
    flags: Any = Annotated[_flags(entry) | None, Parameter(name="*")]
    parameters.append(inspect.Parameter("flags", named, default=None, annotation=flags))
    for role in _flag_roles(entry):
        annotation = Annotated[str | None, Parameter(help=_ROLE_HELP[role])]
        parameters.append(inspect.Parameter(role, named, default=None, annotation=annotation))
    parameters += [
        inspect.Parameter("seed", named, default=0, annotation=Seed),
        inspect.Parameter("offline", named, default=False, annotation=Offline),
        inspect.Parameter("json", named, default=False, annotation=AsJson),
    ]
    return parameters
