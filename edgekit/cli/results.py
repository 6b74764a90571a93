"""What a single command prints when its stage is done, and the exit code that follows from the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from edgekit.artifact import Artifact
from edgekit.cli.launch import is_main_process

if TYPE_CHECKING:
    from rich.console import Console

_RESULT_FILES = {
    "quality": "quality.json",
    "parity": "parity.json",
    "measurement": "measurement.json",
    "lowering": "lowering.json",
}


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
        from edgekit.benchmarking.result_files import read_comparison, read_generation_comparison, read_sweep
        from edgekit.packaging.facts import speed_up

        in_turn = read_generation_comparison(artifact) or read_sweep(artifact)
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
        from edgekit.benchmarking.result_files import read_quality

        console.print(terminal.quality_table(read_quality(artifact)))
    elif artifact.kind == "lowering":
        from edgekit.exporters.lowering_choice import read_choice
        from edgekit.tuning.table import show_choice

        show_choice(read_choice(artifact), console)
    elif artifact.kind == "parity":
        from edgekit.exporters.parity import read_parity

        console.print(terminal.parity_table(read_parity(artifact)))
    else:
        _show_measurement(artifact, console)


def _show_measurement(artifact: Artifact, console: Console) -> None:
    """Prints one model, or all that took turns with it."""
    from edgekit.benchmarking.result_files import (
        read_comparison,
        read_generation_comparison,
        read_measurement,
        read_sweep,
    )
    from edgekit.reporting import terminal_measurements

    written, swept = read_generation_comparison(artifact), read_sweep(artifact)
    compared = read_comparison(artifact)
    if written is not None:
        terminal_measurements.show_generation_comparison(written, console)
    elif swept is not None:
        terminal_measurements.show_sweep(swept, console)
    elif compared is not None:
        terminal_measurements.show_comparison(compared, console)
    else:
        terminal_measurements.show_measurement(read_measurement(artifact), console)
