"""What was found out about an export before it is bundled; the manifest and the model card repeat it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from edgekit.errors import UsageError
from edgekit.results import (
    AnyMeasurement,
    AnyParity,
    AnyQuality,
    BudgetResult,
    Comparison,
    Estimate,
    EstimateCheck,
    ExportResult,
    Interval,
    Result,
)

_RESULT_FILES = {"parity": "parity.json", "quality": "quality.json", "measurement": "measurement.json"}
_COMPARISON_FILE = "comparison.json"


class SpeedUp(Result):
    """How many times as long the float32 export of the same model takes."""

    ratio_p50: float
    """p50 of the float32 export over p50 of this one: above 1, this one is faster."""
    interval: Interval
    """Bootstrap interval of the ratio."""
    rounds: int
    """Times that the two took turns in one run."""


class BundleFacts(Result):
    """The evidence that a bundle carries. Without a parity check that passed, nothing is bundled."""

    parity: AnyParity | None = None
    """How far the exported file is from torch."""
    other_parities: list[AnyParity] = []
    """The same under the other runtimes that the target ships."""
    quality: AnyQuality | None = None
    """Quality of the exported file itself."""
    measurement: AnyMeasurement | None = None
    """Speed and memory, with the machine that they were measured on."""
    measured_on_target: bool = False
    """True when that machine counts as the target; otherwise the figures are of another machine."""
    speed_up: SpeedUp | None = None
    """The export against its own float32 export, interleaved."""
    estimates: list[Estimate] = []
    """Figures for the target that nobody measured."""
    estimate_checks: list[EstimateCheck] = []
    """Where the target was measured: what would have been estimated, and how far that is off."""
    budget: BudgetResult | None = None
    """Every limit and what was found; None when none was checked."""
    notes: list[str] = []
    """Things a person should know."""

    @classmethod
    def of(cls, result: ExportResult) -> Self:
        """Returns the facts in an export's result."""
        return cls(
            parity=result.parity,
            other_parities=result.other_parities,
            quality=result.quality,
            measurement=result.measurement,
            measured_on_target=result.measured_on_target,
            speed_up=None if result.float_comparison is None else speed_up(result.float_comparison),
            estimates=result.estimates,
            estimate_checks=result.estimate_checks,
            budget=result.budget,
            notes=result.notes,
        )

    @classmethod
    def read(cls, paths: list[Path]) -> Self:
        """Returns the facts in artifacts of kind parity, quality and measurement, or in a JSON file of these facts.

        Raises:
            UsageError: a path is neither, or two hold the same kind.
        """
        found: dict[str, object] = {}
        for path in paths:
            fields = _read_one(path)
            twice = sorted(set(found) & set(fields))
            if twice:
                raise UsageError(f"{path}: a second {twice[0]}; expected one of each kind. Leave one out.")
            found.update(fields)
        return cls.model_validate(found)


def speed_up(comparison: Comparison) -> SpeedUp:
    """Returns the ratio of a comparison without its samples."""
    return SpeedUp(ratio_p50=comparison.ratio_p50, interval=comparison.ratio_interval, rounds=comparison.rounds)


def _read_one(path: Path) -> dict[str, object]:
    """Returns the fields that one path holds."""
    from edgekit.artifact import Artifact

    if not path.is_dir():
        fields = _read_json(path)
        if not isinstance(fields, dict):
            raise UsageError(f"{path}: found a JSON {type(fields).__name__}, expected an object of bundle facts.")
        return fields
    artifact = Artifact.open(path)
    if artifact.kind not in _RESULT_FILES:
        expected = ", ".join(_RESULT_FILES)
        raise UsageError(f"{path}: found an artifact of kind '{artifact.kind}', expected one of: {expected}.")
    fields = {str(artifact.kind): _read_json(path / _RESULT_FILES[artifact.kind])}
    if _COMPARISON_FILE in artifact.files:
        fields["speed_up"] = speed_up(Comparison.model_validate(_read_json(path / _COMPARISON_FILE)))
    return fields


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}). Give an artifact or a JSON file.") from error
