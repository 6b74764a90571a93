"""The build's cache: a stage that ran once on the same inputs, config and seed is not run again.

Layout below the build's output directory:

    artifacts/<kind>-<key>/       the artifact
    artifacts/<kind>-<key>.json   how long it took
    work/<kind>-<key>/            what a killed stage needs to go on; gone when the artifact is there
    work/memory/                  what stages keep for each other; gone when the build is done
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from edgekit.artifact import Artifact, hash_json, write_atomically
from edgekit.contract import StageConfig, StageContext, StageInputs
from edgekit.errors import ArtifactError, EnvironmentLacksError, UsageError
from edgekit.events import Event, EventSink
from edgekit.results import StepResult
from edgekit.stages import get_stage, run_stage
from edgekit.work_directory import clear_work_directory


@dataclass(frozen=True)
class Cached:
    """An artifact, how long it took to make, and whether it was already there."""

    artifact: Artifact
    seconds: float
    was_cached: bool


@dataclass(frozen=True)
class Cache:
    """Runs stages through the content cache in `directory`."""

    directory: Path
    seed: int
    events: EventSink
    offline: bool = False
    steps: list[StepResult] = field(default_factory=list)
    """What was run or found so far, in order, each artifact once."""

    def run(
        self,
        kind: str,
        inputs: StageInputs,
        config: StageConfig,
        *,
        outside: dict[str, JsonValue] | None = None,
        reusable: Callable[[Artifact], bool] = lambda artifact: True,
    ) -> Cached:
        """Returns the stage's artifact, made now unless the same was made before.

        `outside` holds what the output depends on beyond inputs, config and seed: the digest of source files, or the
        fingerprint of the machine. A cached artifact that is not `reusable` is made again.

        Raises:
            EdgekitError: whatever the stage raises; its work directory stays, so that the same call resumes.
        """
        name = f"{kind}-{self._key(kind, inputs, config, outside or {})[:16]}"
        out = self.directory / "artifacts" / name
        timing = out.with_suffix(".json")
        found = self._find(out)
        if found is not None and not reusable(found):
            shutil.rmtree(out)
            found = None
        if found is not None:
            seconds = _read_seconds(timing)
            self.events(Event("stage-cached", stage=kind, values={"seconds": seconds}))
            return self._note(kind, inputs, config, Cached(found, seconds, was_cached=True))
        work = self.directory / "work" / name
        started = time.perf_counter()
        context = StageContext(out, self.seed, self.events, work, self.offline, self._memory)
        artifact = run_stage(kind, inputs, config, context)
        seconds = time.perf_counter() - started
        write_atomically(timing, json.dumps({"seconds": seconds}))
        clear_work_directory(work, self.directory / "logs" / name)
        return self._note(kind, inputs, config, Cached(artifact, seconds, was_cached=False))

    def _note(self, kind: str, inputs: StageInputs, config: StageConfig, made: Cached) -> Cached:
        """Remembers the step, unless an earlier one gave the same artifact."""
        digest = made.artifact.digest
        if all(step.digest != digest for step in self.steps):
            of, seconds = _subject(kind, inputs, config), made.seconds
            self.steps.append(StepResult(kind=kind, of=of, seconds=seconds, cached=made.was_cached, digest=digest))
        return made

    def forget(self) -> None:
        """Removes what stages kept for each other: nothing of it is a result."""
        shutil.rmtree(self._memory, ignore_errors=True)

    @property
    def _memory(self) -> Path:
        return self.directory / "work" / "memory"

    def _key(self, kind: str, inputs: StageInputs, config: StageConfig, outside: dict[str, JsonValue]) -> str:
        return hash_json(
            {
                "kind": kind,
                "version": get_stage(kind).version,
                "inputs": {role: artifact.digest for role, artifact in inputs.present().items()},
                "config": config.model_dump(mode="json"),
                "seed": self.seed,
                "outside": outside,
            }
        )

    def _find(self, out: Path) -> Artifact | None:
        """Opens a cached artifact; one that is altered, not whole or of another format goes, with notice."""
        if not out.exists():
            return None
        try:
            return Artifact.open(out)
        except ArtifactError as error:
            # A kill while it is deleted leaves nothing under its own name; `locked` clears the rest.
            aside = out.with_name(f".{out.name}.partial-refused")
            shutil.rmtree(aside, ignore_errors=True)
            out.rename(aside)
            shutil.rmtree(aside)
            self.events(
                Event("message", stage=out.name, text=f"A cached artifact was refused and is made again. {error}")
            )
            return None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a build's output directory for one process and clears what killed builds left half-written.

    Raises:
        UsageError: another build runs there, or the path is a file.
        EnvironmentLacksError: it cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is a file; expected a directory to build into.")
    try:
        (directory / "artifacts").mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise EnvironmentLacksError(f"{directory}: cannot be written ({error.strerror}).") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{directory}: another build is running there. Wait for it, or use another --out."
            ) from error
        for place in (directory / "artifacts", directory / "bundles"):
            for leftover in place.glob(".*.partial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        yield


def _subject(kind: str, inputs: StageInputs, config: StageConfig) -> str:
    """Returns what a stage is run on, in words."""
    on = inputs.model or inputs.teacher
    if on is None:
        return ""
    words = _made_by(on)
    if inputs.reference is not None:
        return f"{words} against {_made_by(inputs.reference)}"
    return words + (_precision(config.model_dump()) if kind == "export" else "")


def _made_by(artifact: Artifact) -> str:
    """Returns the stage that made an artifact; of an export also the stage that made its model."""
    made, parent = artifact.lineage, artifact.lineage.inputs.get("model")
    if made.stage != "export" or parent is None:
        return made.stage
    return f"export of {parent.lineage.stage}{_precision(made.config)}"


def _precision(config: Mapping[str, object]) -> str:
    found = config.get("precision", "as-is")
    return "" if found == "as-is" else f" in {found}"


def _read_seconds(timing: Path) -> float:
    try:
        return float(json.loads(timing.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0
