"""What changed from one saved result to another."""

from __future__ import annotations

from typing import Literal

from edgekit.results.base import Interval, Result
from edgekit.results.verdict import Verdict

Unit = Literal["ms", "tokens/s", "bytes", "accuracy", "perplexity"]


class SettingChange(Result):
    """Something that was chosen, not measured, and is not the same in both."""

    name: str
    """For example `runtime_version`, or `recipe.stage.0.epochs`."""
    before: str
    after: str


class Change(Result):
    """One figure in both results."""

    of: str
    """What it is a figure of: `onnx for laptop-x86` in a build, else empty."""
    name: str
    """What people call it, for example `p50 latency`."""
    unit: Unit
    before: float
    after: float
    change: float
    """`after` over `before`; of accuracies the difference."""
    interval: Interval | None = None
    """The change's confidence interval; None for sizes, which are exact or read once."""
    margin: float
    """Changes up to this do not count: a share, of accuracies a difference."""
    verdict: Verdict | None
    """Of the later result; None where the figure is shown and not judged."""


class Changes(Result):
    """Two saved results, side by side."""

    before: str
    """Where the earlier one was read from."""
    after: str
    """Where the later one was read from, or which model it is of."""
    settings: list[SettingChange]
    figures: list[Change]
    notes: list[str] = []
    """What a reader must know: other machines, doubts, exports that only one of them has."""

    @property
    def worse(self) -> list[Change]:
        """Returns the figures that are worse in the later result."""
        return [figure for figure in self.figures if figure.verdict == "worse"]
