"""`edgekit compare`: what changed from one saved result to another; also what `edgekit bench --baseline` shows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edgekit.cli.options import AsJson

if TYPE_CHECKING:
    from edgekit.benchmarking.changes import Named, Saved
    from edgekit.results import Changes

WORSE = 1


def compare(
    before: Path,
    after: Path,
    *,
    margin: float = 0.1,
    anyway: Annotated[bool, Parameter(negative="")] = False,
    markdown: Path | None = None,
    json: AsJson = False,
) -> int:
    """Say what changed from one saved measurement or build to another; exit code 1 when something is worse.

    Parameters
    ----------
    before
        A measurement.json, a build.json, or a directory that holds one.
    after
        The later one, of the same kind.
    margin
        Differences of speed up to this share do not count: they were measured apart.
    anyway
        Compare results of other machines, schemas or scenarios, too.
    markdown
        Write the comparison to this file as well, as Markdown for a pull request.
    """
    from edgekit.benchmarking.changes import Named
    from edgekit.benchmarking.saved import read_saved

    pair = [Named(str(path), read_saved(path, any_schema=anyway)) for path in (before, after)]
    require_comparable(pair[0], pair[1].result, anyway=anyway)
    return show_changes(pair[0], pair[1], margin=margin, markdown=markdown, as_json=json)


def require_comparable(before: Named, after: Saved, *, anyway: bool) -> None:
    """Does nothing when two results may be compared.

    Raises:
        UsageError: they are of two kinds, or, unless `anyway`, of other machines or scenarios.
    """
    from edgekit.benchmarking.changes import obstacles
    from edgekit.errors import UsageError

    found = obstacles(before.result, after)
    if found and (not anyway or type(before.result) is not type(after)):
        advice = " Compare them all the same with --anyway." if type(before.result) is type(after) else ""
        raise UsageError(f"{before.name}: cannot be compared with: {'; '.join(found)}.{advice}")


def show_changes(before: Named, after: Named, *, margin: float, markdown: Path | None, as_json: bool) -> int:
    """Prints what changed, writes it as Markdown where asked, and returns 1 when something is worse, else 0."""
    from edgekit.benchmarking.changes import compare_saved, obstacles
    from edgekit.reporting.changes import render_changes
    from edgekit.reporting.speed import doubts
    from edgekit.results import BuildResult

    of_build = partial(doubts, in_build=isinstance(after.result, BuildResult))
    changes = compare_saved(before, after, margin=margin, doubts=of_build)
    notes = [f"Compared all the same: {reason}." for reason in obstacles(before.result, after.result)]
    changes = changes.model_copy(update={"notes": [*notes, *changes.notes]})
    if markdown is not None:
        from edgekit.artifact import write_atomically

        write_atomically(markdown, render_changes(changes))
    _print(changes, as_json=as_json)
    return WORSE if changes.worse else 0


def _print(changes: Changes, *, as_json: bool) -> None:
    if as_json:
        from edgekit.cli.terminal import write_json_line

        write_json_line({"kind": "changes", **changes.model_dump(mode="json")})
        return
    from rich.console import Console

    from edgekit.reporting.terminal import show_changes as show

    show(changes, Console())
