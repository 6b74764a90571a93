"""A whole build: its steps, its stages, its exports."""

from __future__ import annotations

from pydantic import JsonValue

from edgekit.results.base import Result, SavedResult
from edgekit.results.budget import BudgetResult
from edgekit.results.estimate import Estimate, EstimateCheck
from edgekit.results.machine import Machine
from edgekit.results.measurement import AnyMeasurement, Comparison
from edgekit.results.parity import AnyParity
from edgekit.results.quality import AnyQuality


class StageResult(Result):
    """One stage of a build."""

    kind: str
    """Name of the stage in the stage table."""
    seconds: float
    """Wall time; the original run's when cached."""
    cached: bool
    """True when the artifact was already there."""
    quality: AnyQuality
    digest: str = ""
    """Digest of the artifact that the stage made."""
    path: str = ""
    """The artifact, relative to the build's output directory."""
    model_bytes: int = 0
    """Size of the weights file."""
    parameters: int = 0
    """Number of weights."""


class PreparationResult(Result):
    """A step of a build that makes no model of its own: data, import, teacher signal."""

    kind: str
    seconds: float
    cached: bool
    digest: str = ""
    path: str = ""


class StepResult(Result):
    """One run of a stage by a build, of whatever kind: also evaluations, exports, checks, measurements, bundles."""

    kind: str
    """Name of the stage in the stage table."""
    of: str
    """What it was run on, by the stage that made that: `export of quantize`; empty for the first steps."""
    seconds: float
    """Wall time; the original run's when cached."""
    cached: bool
    """True when the artifact was there before this build."""
    digest: str
    """Digest of the artifact that the step made."""


class ExportResult(Result):
    """One format for one target."""

    format: str
    target: str
    bytes: int
    """Size of the model file or files that ship."""
    parity: AnyParity
    other_parities: list[AnyParity] = []
    """Under the other runtimes that the target ships for this format, where they are here."""
    quality: AnyQuality | None = None
    """Quality of the exported file itself, run by its runtime."""
    measurement: AnyMeasurement | None
    """None when the budget of the build left no measurement (parity failed)."""
    float_comparison: Comparison | None = None
    """The export (first) against its own float32 export (second), interleaved."""
    teacher_comparison: Comparison | None = None
    """A classifier's export (first) against its teacher's own float32 export (second), interleaved; None where the
    export is the teacher itself, and where the teacher's weights take more than 1 GiB."""
    target_description: str = ""
    """The target in words, from its file."""
    measured_on_target: bool = False
    """True when the machine that measured counts as such a target; otherwise the figures are of another machine."""
    estimates: list[Estimate] = []
    """Figures for the target device that this machine cannot measure."""
    estimate_checks: list[EstimateCheck] = []
    """Where this machine counts as the target: what would have been estimated, and how far that is off."""
    budget: BudgetResult
    bundle: str | None = None
    """The bundle, relative to the build's output directory; None when nothing passed."""
    notes: list[str] = []
    """Things a person should know, such as `int8 is slower than float32`."""


class BuildResult(SavedResult):
    """The whole build: the content of `build.json`."""

    name: str
    seed: int
    edgekit_version: str = ""
    machine: Machine | None = None
    teacher_quality: AnyQuality | None = None
    teacher_bytes: int = 0
    """Size of the teacher's weights file; 0 when not known."""
    teacher_parameters: int = 0
    """Number of the teacher's weights; 0 when not known."""
    preparation: list[PreparationResult] = []
    stages: list[StageResult]
    steps: list[StepResult] = []
    """Everything that the build ran, in order, each artifact once; empty in files of older versions."""
    exports: list[ExportResult]
    recipe: dict[str, JsonValue] = {}
    """The recipe as it was validated."""
    failures: list[str] = []
    """One sentence for each thing that failed."""
    exit_code: int
