"""The Python API: one function per stage, `build`, `load`, and what they need.

`edgekit.quantize("IN", QuantizeConfig(bits=4), out="OUT")` is `edgekit quantize IN OUT --bits 4`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, require_absent
from edgekit.contract import StageConfig, StageContext, StageInputs
from edgekit.errors import UsageError
from edgekit.events import EventSink, ignore
from edgekit.stages import get_stage, run_stage

if TYPE_CHECKING:
    from edgekit.packaging.classifier import Classifier
    from edgekit.results import BuildResult

ArtifactLike = Artifact | str | Path


def run(  # noqa: PLR0913 - every keyword is an option of every stage
    kind: str,
    model: ArtifactLike | None = None,
    config: StageConfig | None = None,
    *,
    out: str | Path,
    seed: int = 0,
    offline: bool = False,
    events: EventSink = ignore,
    **roles: ArtifactLike,
) -> Artifact:
    """Runs one stage by name and returns the artifact that it made at `out`.

    `roles` are the other artifacts: `teacher`, `data`, `signal`, `reference`. Artifacts are given as such or by path;
    the digests of their files are verified. A long stage keeps what a resume needs in `<out>.work` until it is done.

    Raises:
        UsageError: an unknown stage or role, a missing artifact, or a wrong config class.
        ArtifactError: `out` exists, or an input is no artifact or is corrupt.
        EdgekitError: whatever the stage raises.
    """
    import shutil

    entry = get_stage(kind)
    known = (*entry.needs, *entry.takes)
    given = {**roles, **({} if model is None else {"model": model})}
    for role in given:
        if role not in known:
            raise UsageError(f"{kind}: takes no '{role}'; it takes: {', '.join(known) or 'no artifact'}.")
    require_absent(Path(out))
    inputs = StageInputs(**{role: _open(artifact) for role, artifact in given.items()})
    work = Path(out).with_name(f".{Path(out).name}.work")
    chosen = entry.config_class()() if config is None else config
    artifact = run_stage(kind, inputs, chosen, StageContext(Path(out), seed, events, work, offline))
    shutil.rmtree(work, ignore_errors=True)
    return artifact


@dataclass(frozen=True)
class StageFunction:
    """A stage as a function: `(model, config, *, out, seed, events, **roles) -> Artifact`."""

    kind: str

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """The stage's summary."""
        return get_stage(self.kind).summary

    def __call__(  # noqa: PLR0913 - the same as `run`
        self,
        model: ArtifactLike | None = None,
        config: StageConfig | None = None,
        *,
        out: str | Path,
        seed: int = 0,
        offline: bool = False,
        events: EventSink = ignore,
        **roles: ArtifactLike,
    ) -> Artifact:
        """Runs the stage; see `edgekit.api.run`."""
        return run(self.kind, model, config, out=out, seed=seed, offline=offline, events=events, **roles)


def build(
    recipe: str | Path,
    *,
    out: str | Path,
    offline: bool = False,
    events: EventSink = ignore,
    **overrides: object,
) -> BuildResult:
    """Builds a recipe, by name or path, into `out`; `seed=1` or other top-level keys override the recipe's.

    Raises:
        RecipeError: the recipe is wrong.
        EdgekitError: a stage could not run. Missed budgets and failed parity are in the result's `exit_code`.
    """
    from edgekit.pipeline import build as build_recipe
    from edgekit.recipe import load_recipe

    return build_recipe(load_recipe(str(recipe), dict(overrides)), out, events=events, offline=offline)  # type: ignore[arg-type]


def load(bundle: str | Path) -> Classifier:
    """Returns the classifier in a bundle, after verifying the digest of every file.

    Raises:
        CorruptArtifactError: a file was altered.
        EnvironmentLacksError: onnxruntime or tokenizers is not installed.
    """
    from edgekit.packaging.bundle import open_bundle

    return open_bundle(Path(bundle))


def _open(artifact: ArtifactLike) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
