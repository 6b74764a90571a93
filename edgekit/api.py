"""The Python API: one function per stage, `build`, `load`, and what they need.

`edgekit.quantize("IN", QuantizeConfig(bits=4), out="OUT")` is `edgekit quantize IN OUT --bits 4`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, require_absent
from edgekit.contract import StageConfig, StageContext, StageInputs
from edgekit.errors import UsageError
from edgekit.events import EventSink, ignore
from edgekit.stages import get_stage, run_stage
from edgekit.work_directory import clear_work_directory

if TYPE_CHECKING:
    from pydantic import JsonValue

    from edgekit.packaging.classifier import Classifier
    from edgekit.packaging.language_bundle import LanguageBundle
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

    `roles` are the other artifacts: `teacher`, `data`, `signal`, `reference`, `lowering`. Artifacts are given as such
    or by path; the digests of their files are verified. A long stage keeps what a resume needs in `.<out>.work` until
    it is done; TensorBoard logs of a training stay in `<out>.logs`.

    Raises:
        UsageError: an unknown stage or role, a missing artifact, or a wrong config class.
        ArtifactError: `out` exists, or an input is no artifact or is corrupt.
        EdgekitError: whatever the stage raises.
    """
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
    clear_work_directory(work, Path(out).with_name(f"{Path(out).name}.logs"))
    return artifact


def stage_function(kind: str) -> Callable[..., Artifact]:
    """Returns the stage `kind` as a function: `run` with its first argument filled in."""
    function = partial(run, kind)
    function.__doc__ = f"{get_stage(kind).summary}\n\n{run.__doc__}"
    return function


def build(
    recipe: str | Path,
    *,
    out: str | Path,
    offline: bool = False,
    events: EventSink = ignore,
    **overrides: JsonValue,
) -> BuildResult:
    """Builds a recipe, by name or path, into `out`; `seed=1` or other top-level keys override the recipe's.

    Raises:
        RecipeError: the recipe is wrong.
        EdgekitError: a stage could not run. Missed budgets and failed parity are in the result's `exit_code`.
    """
    from edgekit.pipeline import build as build_recipe
    from edgekit.recipe import load_recipe

    return build_recipe(load_recipe(str(recipe), overrides), out, events=events, offline=offline)


def load(bundle: str | Path) -> Classifier:
    """Returns the classifier in a bundle, after verifying the digest of every file.

    Raises:
        CorruptArtifactError: a file was altered.
        EnvironmentLacksError: onnxruntime or tokenizers is not installed.
    """
    from edgekit.packaging.bundle import open_bundle

    return open_bundle(Path(bundle))


def load_language_model(bundle: str | Path) -> LanguageBundle:
    """Returns the language model in a bundle, after verifying the digest of every file.

    Raises:
        CorruptArtifactError: a file was altered.
        UsageError: it holds a classifier.
    """
    from edgekit.packaging.bundle import open_language_bundle

    return open_language_bundle(Path(bundle))


def _open(artifact: ArtifactLike) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
