"""Every exception that edgekit raises on purpose, and the exit code that each one means.

    EdgekitError                        1
    ├── UsageError                      2   the request itself is wrong
    │   ├── RecipeError                     a recipe: unknown key, wrong type, missing part
    │   ├── TargetError                     a target file: unknown name, impossible value
    │   ├── DataError                       a data source: missing column, empty split, bad label, no tokens
    │   ├── ModelError                      a model source: not found, wrong labels, unreadable
    │   │   └── UntrustedModelError         pickled weights, remote code
    │   ├── ArtifactError                   an artifact: not one, wrong kind, output exists
    │   │   └── CorruptArtifactError        a file is missing, truncated or altered
    │   └── UnsupportedError                a scheme, architecture or format that cannot be expressed
    ├── BudgetError                     1   a budget was missed, or could not be shown to be met
    │   ├── BundleSizeError                 the bundle is larger than the target's store allows
    │   └── MemoryLimitError                a model does not run within the memory limit that was set
    ├── ParityError                     3   the exported file differs from the model it came from
    ├── EnvironmentLacksError           4   a package, a runtime, disk space or the network is missing
    │   └── MeasurementError                the process that ran a model while it was measured died or hung
    └── TrainingError                   5   the loss is not finite; the last good checkpoint is kept

Exit code 0 means that every budget was met; 130 that the user interrupted (run the same command to resume).
A message says what was found, what was expected, and what to do.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose; `exit_code` is what the command line returns."""

    exit_code: int = 1


class UsageError(EdgekitError):
    """The request is wrong: nothing was computed and nothing was written."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe holds an unknown key, a wrong type, or lacks a part."""


class TargetError(UsageError):
    """A target is unknown or its file holds an impossible value."""


class DataError(UsageError):
    """A data source lacks a column, a split, a label or any token."""


class ModelError(UsageError):
    """A model source cannot be found or read, or does not fit the task."""


class UntrustedModelError(ModelError):
    """A model would execute code when loaded: pickled weights or remote code."""


class ArtifactError(UsageError):
    """A directory is not an artifact, is of the wrong kind, or already exists where one should be written."""


class CorruptArtifactError(ArtifactError):
    """A file of an artifact is missing, truncated or altered."""


class UnsupportedError(UsageError):
    """A scheme, an architecture or an option cannot be expressed in the format asked for."""


class BudgetError(EdgekitError):
    """A budget was missed, or a measurement could not show that it was met."""

    exit_code = 1


class BundleSizeError(BudgetError):
    """A bundle is larger than the target's store allows."""

    def __init__(self, message: str, *, found: int, limit: int) -> None:
        """Keeps both sizes, bytes."""
        super().__init__(message)
        self.found, self.limit = found, limit


class MemoryLimitError(BudgetError):
    """A model could not be opened or run within the memory limit that was set."""


class ParityError(EdgekitError):
    """An exported file, run by its runtime, differs from the model it was made from."""

    exit_code = 3


class EnvironmentLacksError(EdgekitError):
    """Something outside edgekit is missing: a package, a runtime, disk space or the network."""

    exit_code = 4


class MeasurementError(EnvironmentLacksError):
    """The process that runs a model while it is measured died, or gave no answer in time."""


class TrainingError(EdgekitError):
    """Training cannot go on, for example because the loss is not finite; the last good checkpoint is kept."""

    exit_code = 5
