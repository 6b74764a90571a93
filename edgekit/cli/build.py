"""`edgekit build`: a recipe from teacher to bundles."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from edgekit.cli.options import AsJson, Offline
from edgekit.cli.terminal import listening
from edgekit.errors import UsageError


def build(
    recipe: str,
    *,
    out: Path = Path("build"),
    seed: int | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    json: AsJson = False,
    offline: Offline = False,
) -> int:
    """Run a recipe: all stages, all exports, all checks, the bundles and the report.

    A finished stage is taken from the cache in OUT, and a killed build goes on where it stopped.

    Parameters
    ----------
    recipe
        Name of a built-in recipe, or the path of a .toml file.
    out
        Directory to build into.
    seed
        Overrides the recipe's seed.
    set_
        Overrides one value of the recipe, for example `--set stage.0.epochs=1`; may be repeated.
    """
    from edgekit.pipeline import build as build_recipe
    from edgekit.recipe import load_recipe

    overrides = dict(_assignment(text) for text in set_ or [])
    if seed is not None:
        overrides["seed"] = seed
    loaded = load_recipe(recipe, overrides)
    with listening(as_json=json) as events:
        result = build_recipe(loaded, out, events=events, offline=offline)
    if not json:
        from rich.console import Console

        from edgekit.reporting.files import report_files
        from edgekit.reporting.terminal import show_build

        show_build(result, Console())
        print(f"Report: {report_files(out).html}")
    return result.exit_code


def _assignment(text: str) -> tuple[str, Any]:
    """Splits `key=value`; the value is read as JSON where it is valid JSON, else as text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {text}: expected key=value, for example stage.0.epochs=1.")
    try:
        return key, json_format.loads(value)
    except ValueError:
        return key, value
