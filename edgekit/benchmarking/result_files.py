"""The files of `quality` and `measurement` artifacts: their names, writing and reading."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter

from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError
from edgekit.results import AnyMeasurement, AnyQuality, Comparison, GenerationComparison, Sweep

QUALITY_FILE = "quality.json"
MEASUREMENT_FILE = "measurement.json"
COMPARISON_FILE = "comparison.json"
SWEEP_FILE = "sweep.json"
GENERATION_COMPARISON_FILE = "generation_comparison.json"

_Result = TypeVar("_Result", bound=BaseModel)


def write_result(result: BaseModel | None, file: Path) -> None:
    """Writes a result as JSON; nothing where there is none."""
    if result is not None:
        file.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_quality(artifact: Artifact) -> AnyQuality:
    """Returns the result in a `quality` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    found: AnyQuality = TypeAdapter(AnyQuality).validate_json(_read(artifact, "quality", QUALITY_FILE))
    return found


def read_measurement(artifact: Artifact) -> AnyMeasurement:
    """Returns the measurement of the model in a `measurement` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    text = _read(artifact, "measurement", MEASUREMENT_FILE)
    found: AnyMeasurement = TypeAdapter(AnyMeasurement).validate_json(text)
    return found


def read_comparison(artifact: Artifact) -> Comparison | None:
    """Returns the comparison in a `measurement` artifact; None when the model was measured alone.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    return _read_beside(artifact, COMPARISON_FILE, Comparison)


def read_sweep(artifact: Artifact) -> Sweep | None:
    """Returns all classifiers that a `measurement` artifact holds; None where no sweep was asked for.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    return _read_beside(artifact, SWEEP_FILE, Sweep)


def read_generation_comparison(artifact: Artifact) -> GenerationComparison | None:
    """Returns all that was measured in turn in a `measurement` artifact; None where it was one language model alone.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    return _read_beside(artifact, GENERATION_COMPARISON_FILE, GenerationComparison)


def _read_beside(artifact: Artifact, name: str, result: type[_Result]) -> _Result | None:
    """Returns what lies beside the measurement; None where it does not."""
    if artifact.kind == "measurement" and name not in artifact.files:
        return None
    return result.model_validate_json(_read(artifact, "measurement", name))


def _read(artifact: Artifact, kind: str, name: str) -> str:
    if artifact.kind != kind:
        raise ArtifactError(f"{artifact.path}: found an artifact of kind '{artifact.kind}', expected '{kind}'.")
    return (artifact.path / name).read_text(encoding="utf-8")
