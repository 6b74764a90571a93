"""Tokens a second against the depth of the context: decoding under the roofline of memory bandwidth, and prefill."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.reporting import wording
from edgekit.reporting.plots.frame import WIDTH, Frame
from edgekit.reporting.plots.front import marker
from edgekit.reporting.plots.svg import Axis, drawing, line, path, text
from edgekit.results import GenerationMeasurement, Interval

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 14, 28.0, 200.0


@dataclass(frozen=True)
class _Rate:
    """Tokens a second at one depth."""

    context_tokens: int
    tokens_per_s: float
    interval: Interval

    def describe(self) -> str:
        """Returns the rate in words."""
        rate, interval = wording.number(self.tokens_per_s), wording.number_range(self.interval)
        return f"after {self.context_tokens:,} tokens: {rate} tokens/s ({interval})"


def decode_by_depth(slug: str, found: GenerationMeasurement) -> str:
    """Returns decode tokens/s at every depth with their intervals, and the roofline where it is known."""
    rates = [
        _Rate(depth.context_tokens, depth.decode_tokens_per_s, depth.decode_tokens_per_s_interval)
        for depth in found.depths
    ]
    return _draw(slug, "Decode speed by context", rates, roofline_points(found))


def prefill_by_depth(slug: str, found: GenerationMeasurement) -> str:
    """Returns prefill tokens/s at every depth with their intervals."""
    rates = [
        _Rate(depth.context_tokens, depth.prefill_tokens_per_s, depth.prefill_tokens_per_s_interval)
        for depth in found.depths
    ]
    return _draw(slug, "Prefill speed by context", rates, [])


def roofline_points(found: GenerationMeasurement) -> list[tuple[int, float]]:
    """Returns each depth's context with the tokens/s that the measured bandwidth would allow; [] when not known."""
    bandwidth = found.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        return []
    return [
        (depth.context_tokens, bandwidth / depth.bytes_per_token) for depth in found.depths if depth.bytes_per_token
    ]


def _draw(slug: str, title: str, rates: list[_Rate], roofline: list[tuple[int, float]]) -> str:
    contexts = [rate.context_tokens for rate in rates]
    highest = max([rate.interval.high for rate in rates] + [limit for _, limit in roofline])
    x = Axis(min(contexts) / 1.6, max(contexts) * 1.6, _LEFT, _RIGHT, logarithmic=True)
    y = Axis(0, highest * 1.12, _BOTTOM, _TOP)
    parts = Frame(x, y, "tokens of context (log scale)", "tokens/s").draw(y_ticks=4)
    if roofline:
        corners = [(x.place(context), y.place(limit)) for context, limit in roofline]
        parts.append(path([(_LEFT, corners[0][1]), *corners, (_RIGHT, corners[-1][1])], "roofline"))
    points = [(x.place(rate.context_tokens), y.place(rate.tokens_per_s)) for rate in rates]
    if len(points) > 1:
        parts.append(path(points, "journey"))
    for rate, (left, top) in zip(rates, points, strict=True):
        low, high = y.place(rate.interval.low), y.place(rate.interval.high)
        parts += [
            line(left, low, left, high, "whisker export"),
            marker("export", (left, top), rate.describe()),
            text(wording.number(rate.tokens_per_s), left, top - 12, anchor="middle", class_="label"),
        ]
    description = "; ".join(rate.describe() for rate in rates)
    return drawing(slug, (WIDTH, _BOTTOM + 42), title, description, parts)
