"""What a finished stage leaves of its work directory: the training logs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TENSORBOARD = "tensorboard"


def clear_work_directory(work: Path, logs: Path) -> None:
    """Removes the work directory of a finished stage; its TensorBoard logs, if any, become the directory `logs`.

    Every process of a launched run calls it: the one that takes the directory away does the work.
    """
    taken = work.with_name(f"{work.name}.done-{os.getpid()}")
    try:
        work.rename(taken)
    except FileNotFoundError:
        return
    written = taken / TENSORBOARD
    if written.is_dir():
        shutil.rmtree(logs, ignore_errors=True)
        logs.parent.mkdir(parents=True, exist_ok=True)
        written.rename(logs)
    shutil.rmtree(taken, ignore_errors=True)
