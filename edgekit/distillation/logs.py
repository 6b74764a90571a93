"""TensorBoard logs of a run, in its work directory; they are never part of an artifact."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Logs:
    """Writes scalars to TensorBoard, or nowhere without a directory or without the package."""

    def __init__(self, directory: Path | None, first_step: int) -> None:
        """Opens the log; what an interrupted run wrote after `first_step` is hidden by what comes now."""
        self._writer: SummaryWriter | None = None
        if directory is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an optional package: the result is the same without
            return
        self._writer = SummaryWriter(str(directory), purge_step=first_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Records named numbers at `step`."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Logs:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flushes and closes the log."""
        if self._writer is not None:
            self._writer.close()
