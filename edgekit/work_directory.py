"""What a finished stage leaves of its work directory: the training logs."""

from __future__ import annotations

import shutil
from pathlib import Path

TENSORBOARD = "tensorboard"


def clear_work_directory(work: Path, logs: Path) -> None:
    """Removes the work directory of a finished stage; its TensorBoard logs, if any, become the directory `logs`."""
    written = work / TENSORBOARD
    if written.is_dir():
        shutil.rmtree(logs, ignore_errors=True)
        logs.parent.mkdir(parents=True, exist_ok=True)
        written.rename(logs)
    shutil.rmtree(work, ignore_errors=True)
