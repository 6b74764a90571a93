"""Commands that look and change nothing: targets, recipes, doctor, verify."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgekit.artifact import Artifact
from edgekit.cli.options import AsJson
from edgekit.errors import EdgekitError, UsageError


def targets(name: str | None = None) -> int:
    """List the targets, or show one with the source of every figure.

    Parameters
    ----------
    name
        A built-in target, or the path of a .toml file.
    """
    from edgekit.cli.target_display import show_target, show_targets
    from edgekit.target import list_targets, load_target

    console = Console()
    if name is not None:
        show_target(console, load_target(name))
        return 0
    show_targets(console, [load_target(known) for known in list_targets()])
    return 0


def recipes() -> int:
    """List the built-in recipes."""
    import tomllib

    from edgekit.recipe import list_recipes, recipe_directory

    table = Table("recipe", "what it builds", title="Built-in recipes", title_justify="left")
    for name in list_recipes():
        values = tomllib.loads((recipe_directory() / f"{name}.toml").read_text(encoding="utf-8"))
        _add(table, name, str(values.get("description", "")))
    Console().print(table)
    return 0


def doctor() -> int:
    """Say what this machine and environment can do, and what is missing. Exit code 4 when something is."""
    from edgekit.doctor import examine

    table = Table("", "what", "found", "what to do", title="edgekit doctor", title_justify="left")
    findings = examine()
    for finding in findings:
        mark = Text("missing", "red") if finding.required else Text("absent", "yellow")
        _add(table, Text("ok", "green") if finding.ok else mark, finding.name, finding.found, finding.advice)
    Console().print(table)
    return 0 if all(finding.ok or not finding.required for finding in findings) else 4


def verify(*paths: Path, json: AsJson = False) -> int:
    """Check artifacts and bundles: every digest, and that a bundle does what it promises.

    All are checked; the exit code is the highest that one of them alone would have.

    Parameters
    ----------
    paths
        Directories of artifacts or bundles.
    """
    if not paths:
        raise UsageError("edgekit verify: found no path, expected the directory of an artifact or bundle.")
    problems = []
    for path in paths:
        try:
            _verify(path, as_json=json)
        except EdgekitError as error:
            problems.append(error)
    if problems:
        failure = EdgekitError("\n".join(map(str, problems)))
        failure.exit_code = max(error.exit_code for error in problems)
        raise failure
    return 0


def _verify(path: Path, *, as_json: bool) -> None:
    """Checks one artifact or bundle, and tells what was checked."""
    artifact = Artifact.open(path, verify=False)
    checked = ["all digests match"]
    if artifact.kind == "bundle":
        from edgekit.packaging.bundle import verify_bundle

        checked += verify_bundle(path).checked
    else:
        artifact.verify()
    total = sum(record.bytes for record in artifact.files.values())
    if as_json:
        from edgekit.cli.terminal import write_json_line

        line: dict[str, JsonValue] = {"kind": "verified", "path": str(path), "artifact": artifact.kind}
        line |= {"digest": artifact.digest, "files": len(artifact.files), "bytes": total, "checked": [*checked]}
        write_json_line(line)
        return
    print(f"{path}: {artifact.kind}, {len(artifact.files)} files, {total:,} bytes: {'; '.join(checked)}.")
    print(f"digest {artifact.digest}; made by {artifact.lineage.stage} of edgekit {artifact.lineage.edgekit_version}.")


def _add(table: Table, *cells: str | Text) -> None:
    """Adds a row whose cells are shown as they are: square brackets in them are no markup."""
    table.add_row(*map(_literal, cells))


def _literal(content: str | Text) -> Text:
    from edgekit.reporting.wording import printable

    return content if isinstance(content, Text) else Text(printable(content))
