"""Says how to install what edgekit's extras bring: the one place that spells the command.

It does not look whether anything is installed.
"""

from __future__ import annotations


def install_command(extra: str) -> str:
    """Returns the command that brings an extra of `pyproject.toml`, and where to run it: edgekit comes as a clone."""
    return f"pip install -c constraints.txt '.[{extra}]' in edgekit's clone"
