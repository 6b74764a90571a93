"""The command that brings an extra is spelled in one place, and names only extras that exist."""

import ast
import tomllib
from pathlib import Path

from edgekit.extras import install_command

ROOT = Path(__file__).parents[1]


def _extras_named() -> set[str]:
    """Returns every extra that the code gives to `install_command` as a word."""
    named = set()
    for file in (ROOT / "edgekit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "install_command":
                named |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return named


def test_the_extras_that_the_code_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"demo", "run", "train", "gguf", "genai"} <= _extras_named() <= set(project["optional-dependencies"])


def test_a_command_installs_from_the_clone_and_is_spelled_once():
    assert install_command("onnx") == "pip install -c constraints.txt '.[onnx]' in edgekit's clone"
    for file in (ROOT / "edgekit").rglob("*.py"):
        assert "pip install 'edgekit[" not in file.read_text(encoding="utf-8"), file
