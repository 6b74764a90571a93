"""What a stage is: a pure function `(inputs, config, context) -> Artifact`.

Every stage folder's `stage.py` holds one or more of these beside their config classes; `stages.py` lists them.
A stage reads no environment, clock or global random state, and writes only through `artifact.publish`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from edgekit.artifact import Artifact, Lineage
from edgekit.errors import UsageError
from edgekit.events import EventSink, ignore


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, strict about unknown keys, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class StageInputs:
    """The artifacts that a stage reads, by role. A stage takes what it needs with `require`."""

    model: Artifact | None = None
    """The model that the stage changes, exports, checks or measures."""
    teacher: Artifact | None = None
    """The model whose outputs are the aim."""
    data: Artifact | None = None
    """Prepared data: splits of texts and labels."""
    signal: Artifact | None = None
    """Cached teacher outputs."""
    reference: Artifact | None = None
    """The torch model that an export is checked against."""
    lowering: Artifact | None = None
    """How linears are written in an export, as it was measured."""

    def require(self, role: str, stage: str) -> Artifact:
        """Returns the artifact that plays `role`.

        Raises:
            UsageError: the stage needs one and none was given.
        """
        artifact: Artifact | None = getattr(self, role)
        if artifact is None:
            raise UsageError(f"{stage}: needs a {role} artifact and none was given. Pass one with --{role}.")
        return artifact

    def present(self) -> dict[str, Artifact]:
        """Returns role to artifact for the roles that are filled."""
        roles = {
            "model": self.model,
            "teacher": self.teacher,
            "data": self.data,
            "signal": self.signal,
            "reference": self.reference,
            "lowering": self.lowering,
        }
        return {role: artifact for role, artifact in roles.items() if artifact is not None}


@dataclass(frozen=True)
class StageContext:
    """Where a stage writes, its seed, whom it tells, and where it may keep what a resume needs."""

    out: Path
    """Directory of the artifact to make; must not exist."""
    seed: int = 0
    """The only source of randomness."""
    events: EventSink = ignore
    """Told of progress."""
    work_directory: Path | None = None
    """Survives a kill and belongs to this very stage, inputs, config and seed; None: a resume starts over."""
    offline: bool = False
    """True forbids any network access."""
    memory: Path | None = None
    """Shared by the stages of a build: a stage may keep there what it would otherwise compute again, named by all that
    it depends on, so that it changes how long a stage takes and nothing else; None: nothing is kept."""


Config_contra = TypeVar("Config_contra", bound=StageConfig, contravariant=True)


class Stage(Protocol[Config_contra]):
    """The shape of every stage function."""

    def __call__(self, inputs: StageInputs, config: Config_contra, context: StageContext) -> Artifact:
        """Makes `context.out` and returns it as an artifact."""


def lineage_of(stage: str, inputs: StageInputs, config: StageConfig, context: StageContext) -> Lineage:
    """Returns the lineage record of the artifact that `stage` is about to make."""
    return Lineage(
        stage=stage,
        config=config.model_dump(mode="json"),
        seed=context.seed,
        inputs={role: artifact.as_ancestor() for role, artifact in inputs.present().items()},
    )
