"""Decoding speed against the depth of the context, under the roofline that memory bandwidth sets."""

from __future__ import annotations

from edgekit.reporting import wording
from edgekit.reporting.plots.frame import WIDTH, Frame
from edgekit.reporting.plots.front import marker
from edgekit.reporting.plots.svg import Axis, drawing, line, path, text
from edgekit.results import GenerationDepth, GenerationMeasurement

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 14, 28.0, 270.0


def speed_by_depth(slug: str, found: GenerationMeasurement) -> str:
    """Returns decode tokens/s at every depth with their intervals, and the roofline where it is known."""
    depths = found.depths
    roofline = roofline_points(found)
    highest = max([depth.decode_tokens_per_s_interval.high for depth in depths] + [rate for _, rate in roofline])
    contexts = [depth.context_tokens for depth in depths]
    x = Axis(min(contexts) / 1.4, max(contexts) * 1.4, _LEFT, _RIGHT, logarithmic=True)
    y = Axis(0, highest * 1.08, _BOTTOM, _TOP)
    frame = Frame(x, y, "tokens of context before the first new one (log scale)", "decode, tokens/s")
    parts = frame.draw()
    if roofline:
        corners = [(x.place(context), y.place(rate)) for context, rate in roofline]
        parts.append(path([(_LEFT, corners[0][1]), *corners, (_RIGHT, corners[-1][1])], "roofline"))
        parts.append(text("roofline", _RIGHT - 4, corners[-1][1] + 16, anchor="end", class_="hint"))
    parts.append(path([_place(depth, x, y) for depth in depths], "journey"))
    for depth in depths:
        parts += _draw_depth(depth, x, y)
    description = "; ".join(_describe(depth) for depth in depths)
    return drawing(slug, (WIDTH, _BOTTOM + 42), "Decode speed by context", description, parts)


def roofline_points(found: GenerationMeasurement) -> list[tuple[int, float]]:
    """Returns each depth's context with the tokens/s that the measured bandwidth would allow; [] when not known."""
    bandwidth = found.memory_bandwidth_bytes_per_s
    if bandwidth is None:
        return []
    return [
        (depth.context_tokens, bandwidth / depth.bytes_per_token) for depth in found.depths if depth.bytes_per_token
    ]


def _place(depth: GenerationDepth, x: Axis, y: Axis) -> tuple[float, float]:
    return x.place(depth.context_tokens), y.place(depth.decode_tokens_per_s)


def _draw_depth(depth: GenerationDepth, x: Axis, y: Axis) -> list[str]:
    at = _place(depth, x, y)
    interval = depth.decode_tokens_per_s_interval
    label = wording.number(depth.decode_tokens_per_s)
    return [
        line(at[0], y.place(interval.low), at[0], y.place(interval.high), "whisker export"),
        marker("export", at, _describe(depth)),
        text(label, at[0], at[1] - 12, anchor="middle", class_="label"),
    ]


def _describe(depth: GenerationDepth) -> str:
    interval = wording.number_range(depth.decode_tokens_per_s_interval)
    rate = wording.number(depth.decode_tokens_per_s)
    return f"after {depth.context_tokens:,} tokens: {rate} tokens/s ({interval})"
