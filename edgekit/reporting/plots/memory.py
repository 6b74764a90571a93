"""Memory: resident pages split into anonymous and file pages, the peak, and the bare interpreter for comparison."""

from __future__ import annotations

from edgekit.reporting.plots.frame import WIDTH, x_grid
from edgekit.reporting.plots.latency import Curve
from edgekit.reporting.plots.svg import Axis, Box, drawing, line, rectangle, text
from edgekit.reporting.wording import mebibytes

_LEFT, _RIGHT, _TOP, _ROW = 0.0, WIDTH - 12, 8.0, 58.0


def memory_split(slug: str, curves: list[Curve], limit_bytes: float | None) -> str:
    """Returns one row a measurement: anonymous and file pages at the end, a line at the peak, the baseline below."""
    if not curves:
        return ""
    largest = max([curve.measurement.peak_rss_bytes for curve in curves] + [limit_bytes or 0]) / 2**20
    axis = Axis(0, max(largest, 1e-6) * 1.04, _LEFT, _RIGHT)
    bottom = _TOP + _ROW * len(curves)
    parts = x_grid(axis, (_TOP, bottom), lambda value: f"{value:g}" if value else "", 5)
    parts.append(text("resident memory, MiB", (_LEFT + _RIGHT) / 2, bottom + 34, anchor="middle", class_="axis-title"))
    for index, curve in enumerate(curves):
        parts += _draw_row(curve, axis, _TOP + _ROW * index)
    if limit_bytes:
        x = axis.place(limit_bytes / 2**20)
        parts += [
            line(x, _TOP, x, bottom, "limit"),
            text("limit", x - 5, bottom - 4, anchor="end", class_="hint"),
        ]
    description = "; ".join(f"{curve.name}: {describe_memory(curve)}" for curve in curves)
    return drawing(slug, (WIDTH, bottom + 42), "Memory", description, parts)


def describe_memory(curve: Curve) -> str:
    """Returns the figures of one row in words."""
    found = curve.measurement
    return (
        f"peak {mebibytes(found.peak_rss_bytes)}, anonymous {mebibytes(found.rss_anonymous_bytes)}, "
        f"file {mebibytes(found.rss_file_bytes)}, interpreter {mebibytes(found.baseline_rss_bytes)}"
    )


def _draw_row(curve: Curve, axis: Axis, top: float) -> list[str]:
    found = curve.measurement
    anonymous = axis.place(found.rss_anonymous_bytes / 2**20)
    resident = axis.place((found.rss_anonymous_bytes + found.rss_file_bytes) / 2**20)
    peak = axis.place(found.peak_rss_bytes / 2**20)
    interpreter = found.baseline_rss_bytes
    baseline = axis.place(interpreter / 2**20)
    bar = top + 20
    name = f"{curve.name}: peak {mebibytes(found.peak_rss_bytes)}"
    return [
        text(name, 0, top + 13, class_="label"),
        rectangle(
            Box(_LEFT, bar, anonymous, bar + 18), "anonymous", f"anonymous {mebibytes(found.rss_anonymous_bytes)}"
        ),
        rectangle(Box(anonymous, bar, resident, bar + 18), "file", f"file pages {mebibytes(found.rss_file_bytes)}"),
        rectangle(Box(_LEFT, bar + 20, baseline, bar + 25), "baseline", f"interpreter {mebibytes(interpreter)}"),
        line(peak, bar - 3, peak, bar + 21, "peak"),
    ]
