"""How far estimates were off where the target was measured as well, in words for every kind of report."""

from __future__ import annotations

from edgekit.reporting.wording import estimate, estimated, mebibytes, number, times
from edgekit.results import BuildResult, EstimateCheck


def estimate_errors(result: BuildResult) -> list[str]:
    """Returns one sentence for each figure that was estimated and measured, with the export that it is about."""
    return [
        f"{export.format} for {export.target}: {sentence(check, export.target)}"
        for export in result.exports
        for check in export.estimate_checks
    ]


def sentence(check: EstimateCheck, target: str) -> str:
    """Returns estimate, measurement and their distance, the middle of a range being its geometric one."""
    value, unit = check.measured, check.estimate.unit
    measured = mebibytes(value) if unit == "bytes" else f"{number(value)} {unit}"
    place = "within the range" if check.within else "outside the range"
    return (
        f"{estimated(check.estimate, target)} {estimate(check.estimate)}, measured {measured}: {place}, "
        f"{times(check.ratio)} its middle."
    )
