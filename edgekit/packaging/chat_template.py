"""Writes a conversation by a model's chat template with jinja2 alone, as an app without transformers does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from edgekit.errors import UsageError

_TELLS_TIME = "strftime_now"


def render_chat(template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
    """Returns a conversation (`role`, `content`), ready for an answer.

    Raises:
        UsageError: the template refuses the conversation.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=True, **special_tokens
        )
    except jinja2.TemplateError as error:
        raise UsageError(f"chat template: it fails on this conversation ({error}). Change the conversation.") from error


def tells_time(template: str) -> bool:
    """Returns whether a template writes today's date, so that its text differs from day to day."""
    return _TELLS_TIME in template


def _refuse(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(pattern: str) -> Any:
    return datetime.now().strftime(pattern)
