"""What the benchmark scripts share: their options, result files with the machine's fingerprint, and tables.

What is measured is the scripts' matter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from edgekit._version import __version__
from edgekit.artifact import write_atomically
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.events import Event
from edgekit.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = Path(__file__).resolve().parent / "results"
RECIPE = "review-sentiment"
SCHEMA = 1


def make_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--recipe", default=RECIPE, help="name or path of the recipe")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE, as `edgekit build` has")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="what `edgekit build` made of it, or will")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks", help="keeps what a rerun can use")
    parser.add_argument("--results", type=Path, default=COMMITTED, help="where the result file goes")
    return parser


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    """Returns the recipe that the options name, with their `--set` values."""
    overrides: dict[str, JsonValue] = {}
    for assignment in arguments.settings:
        key, _, value = assignment.partition("=")
        overrides[key] = tomllib.loads(f"value = {value}")["value"]
    return load_recipe(arguments.recipe, overrides)


def write_result(results: Path, name: str, content: dict[str, Any], packages: Iterable[str] = ()) -> Path:
    """Writes `<name>.json` with the machine, the commit, the date and the versions of `packages`; returns its path."""
    whole = {
        "schema": SCHEMA,
        "name": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "edgekit_version": __version__,
        "commit": _commit(),
        "machine": machine_fingerprint().model_dump(mode="json"),
        "versions": {package: _version(package) for package in packages},
        **content,
    }
    path = results / f"{name}.json"
    write_atomically(path, json.dumps(whole, indent=2) + "\n")
    return path


def read_result(results: Path, name: str) -> dict[str, Any] | None:
    """Returns what `write_result` wrote, or None when it was never measured."""
    path = results / f"{name}.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns line up; the first column is text, the others are numbers."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def spell(line: list[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "| " + " | ".join([line[0].ljust(widths[0]), *numbers]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([spell(lines[0]), rule, *(spell(line) for line in lines[1:])])


def say(text: str) -> None:
    """Tells a person what is going on; results alone go to standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def tell_stages(event: Event) -> None:
    """An event sink that says which stage runs and what it found, one line each."""
    if event.kind in ("stage-started", "message", "stage-cached"):
        say(f"  {event.stage}: {event.text or event.kind}")
    elif event.kind == "metric":
        say(f"  {event.stage}: " + ", ".join(f"{name} {value:.4g}" for name, value in event.values.items()))


def _commit() -> str | None:
    """Returns the checked-out commit, with `+` when the tree differs from it; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
