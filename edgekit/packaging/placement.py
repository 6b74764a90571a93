"""Puts a finished bundle where a user looks for it, all of it at once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.disk import disk_problem
from edgekit.errors import EnvironmentLacksError


def place_bundle(bundle: Artifact, destination: Path) -> None:
    """Puts a copy of a cached bundle at `destination`, replacing an older one.

    Raises:
        EnvironmentLacksError: the disk is full or not writable.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        try:
            shutil.copytree(bundle.path, staging / "new")
            if destination.exists():
                destination.rename(staging / "old")
            (staging / "new").rename(destination)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:  # shutil.Error too, which names every file that failed
        raise EnvironmentLacksError(
            f"{destination}: the bundle could not be put there ({disk_problem(error) or error}). Free disk space, then "
            "run the same command again: everything before it is cached."
        ) from error
