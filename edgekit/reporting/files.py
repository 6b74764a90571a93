"""Writes every report of a build into its output directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import write_atomically
from edgekit.reporting.html import render_html
from edgekit.reporting.json_report import render_json
from edgekit.reporting.junit import render_junit
from edgekit.reporting.markdown import render_markdown
from edgekit.results import BuildResult

BUILD_FILE = "build.json"


@dataclass(frozen=True)
class ReportFiles:
    """Where the reports were written."""

    json: Path
    html: Path
    markdown: Path
    junit: Path


def report_files(directory: Path) -> ReportFiles:
    """Returns the paths of the reports of a build in `directory`."""
    return ReportFiles(
        json=directory / BUILD_FILE,
        html=directory / "report.html",
        markdown=directory / "report.md",
        junit=directory / "junit.xml",
    )


def write_reports(result: BuildResult, directory: Path) -> ReportFiles:
    """Writes `build.json`, `report.html`, `report.md` and `junit.xml`, each atomically, and returns their paths.

    Raises:
        EnvironmentLacksError: the disk is full or not writable.
    """
    files = report_files(directory)
    contents = {
        files.html: render_html(result),
        files.markdown: render_markdown(result),
        files.junit: render_junit(result),
        files.json: render_json(result),
    }
    for path, text in contents.items():
        write_atomically(path, text)
    return files
