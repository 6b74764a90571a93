"""The commands in README.md and docs/ exist and take the options shown; the cheap ones are run."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from edgekit.cli import make_app, run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHEAP = {"--help", "--version", "init", "recipes", "targets", "doctor"}


def block_lines(text: str) -> list[str]:
    """Returns the lines of fenced and indented code blocks, continued ones joined."""
    lines, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def commands_in_blocks(program: str, pages: list[Path]) -> list[str]:
    found = [line for page in pages for line in block_lines(page.read_text(encoding="utf-8"))]
    return sorted({shlex.join(shlex.split(line, comments=True)) for line in found if line.startswith(f"{program} ")})


def commands_in_sentences(page: Path) -> list[str]:
    """Returns what follows `edgekit` between backticks, less continuation by other words."""
    return sorted(set(re.findall(r"`edgekit ([^`]+)`", page.read_text(encoding="utf-8"))))


BLOCKS = commands_in_blocks("edgekit", [page for page in PAGES if page.name != "cli.md"])  # that page is generated
SENTENCES = sorted({command for page in PAGES for command in commands_in_sentences(page)})


def test_commands_are_found():
    assert "edgekit build review-sentiment --out build/" in BLOCKS
    assert "edgekit init reviews.toml" in BLOCKS
    assert "init" in SENTENCES


@pytest.mark.parametrize("command", BLOCKS)
def test_a_command_in_a_code_block_parses(command):
    function, _, _ = make_app().parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert function.__module__.startswith("edgekit.cli")


@pytest.mark.parametrize("command", SENTENCES)
def test_a_command_in_a_sentence_exists_with_its_options(command, capsys):
    name, *rest = shlex.split(command)
    assert run([name, "--help"] if name != "--help" else [name]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in rest if word.startswith("--")):
        assert option in shown


@pytest.mark.parametrize(
    "command",
    sorted(
        {shlex.join(shlex.split(command)[1:]) for command in BLOCKS if shlex.split(command)[1] in CHEAP}
        | {command for command in SENTENCES if shlex.split(command)[0] in CHEAP}
    ),
)
def test_a_cheap_command_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command)) == 0


@pytest.mark.parametrize("command", commands_in_blocks("make", PAGES))
def test_a_target_of_make_exists(command):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands_in_blocks("pip", PAGES))
def test_an_extra_that_pip_installs_exists(command):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for named in re.findall(r"\[([^\]]+)\]", command):
        assert set(named.split(",")) <= set(extras)
