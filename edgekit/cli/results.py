"""What a single command prints when its stage is done, and the exit code that follows from the result."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from edgekit.artifact import Artifact
from edgekit.cli.launch import is_main_process

_RESULT_FILES = {"quality": "quality.json", "parity": "parity.json", "measurement": "measurement.json"}


def conclude(artifact: Artifact, *, as_json: bool, shown_path: Path | None = None) -> int:
    """Prints the artifact's path, and its result where it is one; returns the exit code.

    Of the processes of a launched run only the main one prints.

    Raises:
        ParityError: the artifact is a parity result that failed.
    """
    if is_main_process():
        if as_json:
            _write_result(artifact)
        else:
            _show(artifact)
            print(shown_path or artifact.path)
    if artifact.kind == "parity":
        from edgekit.exporters.parity import read_parity, require_parity

        require_parity(read_parity(artifact))
    return 0


def _write_result(artifact: Artifact) -> None:
    """Writes one JSON line with the result; of two models measured in turn, with their ratio."""
    if artifact.kind not in _RESULT_FILES:
        return
    from edgekit.cli.terminal import write_json_line

    text = (artifact.path / _RESULT_FILES[artifact.kind]).read_text(encoding="utf-8")
    line: dict[str, JsonValue] = {"kind": "result", "stage": artifact.lineage.stage, artifact.kind: json.loads(text)}
    if artifact.kind == "measurement":
        from edgekit.benchmarking.stage import read_comparison, read_generation_comparison
        from edgekit.packaging.facts import speed_up

        in_turn = read_generation_comparison(artifact)
        if in_turn is not None:
            line["in_turn"] = in_turn.model_dump(mode="json")
        comparison = read_comparison(artifact)
        if comparison is not None:
            line["comparison"] = speed_up(comparison).model_dump(mode="json")
    write_json_line(line)


def _show(artifact: Artifact) -> None:
    if artifact.kind not in _RESULT_FILES:
        return
    from rich.console import Console

    from edgekit.reporting import terminal

    console = Console()
    if artifact.kind == "quality":
        from edgekit.benchmarking.stage import read_quality

        console.print(terminal.quality_table(read_quality(artifact)))
    elif artifact.kind == "parity":
        from edgekit.exporters.parity import read_parity

        console.print(terminal.parity_table(read_parity(artifact)))
    else:
        from edgekit.benchmarking.stage import read_comparison, read_generation_comparison, read_measurement

        comparison, in_turn = read_comparison(artifact), read_generation_comparison(artifact)
        if in_turn is not None:
            terminal.show_generation_comparison(in_turn, console)
        elif comparison is None:
            terminal.show_measurement(read_measurement(artifact), console)
        else:
            terminal.show_comparison(comparison, console)
