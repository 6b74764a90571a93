"""THE table: stage name to config class and function, and the one way to run a stage.

Modules are named, not imported, so that reading the table costs nothing; `load` imports a stage when it is needed.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.errors import UsageError
from edgekit.events import Event
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:  # the command line reads the table for its help, without pydantic
    from edgekit.artifact import Artifact
    from edgekit.contract import Stage, StageConfig, StageContext, StageInputs

Role = Literal["model", "teacher", "data", "signal", "reference", "lowering"]


@dataclass(frozen=True)
class StageEntry:
    """One row of the table."""

    kind: str
    """The stage's name: the command, the API function and the `kind` in a recipe."""
    module: str
    """Module that holds both of the following."""
    function: str
    config: str
    version: int
    """Raised when the same inputs and config would give another output: older cached artifacts are then ignored."""
    summary: str
    """One line of help."""
    needs: tuple[Role, ...] = ()
    """Roles that must be filled."""
    takes: tuple[Role, ...] = ()
    """Roles that may be filled."""
    in_recipe: bool = False
    """True for the stages that a recipe lists under `[[stage]]`: they make a model from a model."""

    def config_class(self) -> type[StageConfig]:
        """Returns the configuration class (imports the stage's light module only)."""
        loaded: type[StageConfig] = getattr(importlib.import_module(self.module), self.config)
        return loaded

    def stage(self) -> Stage[StageConfig]:
        """Returns the stage function."""
        loaded: Stage[StageConfig] = getattr(importlib.import_module(self.module), self.function)
        return loaded


STAGES: dict[str, StageEntry] = {
    entry.kind: entry
    for entry in (
        StageEntry(
            "import",
            "edgekit.models.stage",
            "import_model",
            "ImportConfig",
            2,
            "Bring a model from a hub, a directory or an installed package into an artifact.",
        ),
        StageEntry(
            "prepare",
            "edgekit.data.stage",
            "prepare",
            "PrepareConfig",
            2,
            "Read, check, deduplicate, shuffle and split labelled text.",
        ),
        StageEntry(
            "finetune",
            "edgekit.distillation.stage",
            "finetune",
            "FinetuneConfig",
            1,
            "Train a model on labelled text.",
            needs=("model", "data"),
            in_recipe=True,
        ),
        StageEntry(
            "prune",
            "edgekit.pruning.stage",
            "prune",
            "PruneConfig",
            1,
            "Cut a student from its teacher: fewer layers, a smaller vocabulary.",
            needs=("model",),
            takes=("data",),
            in_recipe=True,
        ),
        StageEntry(
            "write",
            "edgekit.distillation.writing_stage",
            "write",
            "WriteConfig",
            2,
            "Let a teacher answer the prompts of data: what it wrote becomes the text to learn.",
            needs=("teacher", "data"),
        ),
        StageEntry(
            "capture",
            "edgekit.distillation.stage",
            "capture",
            "CaptureConfig",
            2,
            "Compute a teacher's outputs once and keep them.",
            needs=("teacher", "data"),
            takes=("model",),
        ),
        StageEntry(
            "distill",
            "edgekit.distillation.stage",
            "distill",
            "DistillConfig",
            2,
            "Train a student on its teacher's outputs.",
            needs=("model", "teacher", "data"),
            takes=("signal",),
            in_recipe=True,
        ),
        StageEntry(
            "quantize",
            "edgekit.quantization.stage",
            "quantize",
            "QuantizeConfig",
            3,
            "Replace weights by integer codes that every format lowers as they are.",
            needs=("model",),
            takes=("data",),
            in_recipe=True,
        ),
        StageEntry(
            "evaluate",
            "edgekit.benchmarking.stage",
            "evaluate",
            "EvaluateConfig",
            3,
            "Measure a model's quality on labelled text.",
            needs=("model", "data"),
            takes=("teacher",),
        ),
        StageEntry(
            "export",
            "edgekit.exporters.stage",
            "export",
            "ExportConfig",
            2,
            "Write a model in the format of a runtime.",
            needs=("model",),
            takes=("lowering",),
        ),
        StageEntry(
            "autotune",
            "edgekit.tuning.stage",
            "autotune",
            "AutotuneConfig",
            1,
            "Measure in which way each linear of a quantized model is fastest, for `export --lowering`.",
            needs=("model",),
        ),
        StageEntry(
            "check",
            "edgekit.exporters.check_stage",
            "check",
            "CheckConfig",
            3,
            "Compare an exported file, run by its runtime, with the model it came from.",
            needs=("model", "reference", "data"),
        ),
        StageEntry(
            "bench",
            "edgekit.benchmarking.stage",
            "bench",
            "BenchConfig",
            1,
            "Measure a model's latency and memory in a fresh process.",
            needs=("model",),
            takes=("reference", "data"),
        ),
        StageEntry(
            "package",
            "edgekit.packaging.stage",
            "package",
            "PackageConfig",
            1,
            "Put a verified export and its evidence into a bundle.",
            needs=("model",),
        ),
    )
}


def get_stage(kind: str) -> StageEntry:
    """Returns the table's row for `kind`.

    Raises:
        UsageError: no such stage; names the nearest.
    """
    if kind not in STAGES:
        raise UsageError(f"stage '{kind}' is unknown.{did_you_mean(kind, STAGES)} Known stages: {', '.join(STAGES)}.")
    return STAGES[kind]


def run_stage(kind: str, inputs: StageInputs, config: StageConfig, context: StageContext) -> Artifact:
    """Runs a stage after checking that the roles it needs are filled, and returns the artifact that it made.

    Raises:
        UsageError: an unknown stage, a missing role, or a config of another stage.
        EdgekitError: whatever the stage raises.
    """
    entry = get_stage(kind)
    for role in entry.needs:
        inputs.require(role, kind)
    if not isinstance(config, entry.config_class()):
        raise UsageError(f"{kind}: found a {type(config).__name__}, expected a {entry.config}.")
    context.events(Event("stage-started", stage=kind, text=entry.summary))
    artifact = entry.stage()(inputs, config, context)
    context.events(Event("stage-finished", stage=kind))
    return artifact
