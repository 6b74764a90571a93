"""A few SVG elements and axes: just enough to draw the report's plots without a plotting library.

Colours come from the page's style sheet through classes, so that a plot follows light and dark mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

HEIGHT_OF_TEXT = 12
"""Font size of plots, in units of the view box; the style sheet sets the same."""
_WIDTH_OF_LETTER = 6.3
_WIDEST_LETTER = 8.6
"""Of bold text in a wide font, at the size that the style sheet sets for phones."""


@dataclass(frozen=True)
class Box:
    """A rectangle in view box units, `top` above `bottom`."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Returns whether the two rectangles share any area."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to view box units."""

    low: float
    high: float
    start: float
    """Position of `low`."""
    end: float
    """Position of `high`."""
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Returns the position of a value, held within the axis."""
        return min(max(self._place(value), min(self.start, self.end)), max(self.start, self.end))

    def _place(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Returns round values within the axis, about as many as wanted."""
        if self.logarithmic:
            ticks = _logarithmic_ticks(self.low, self.high, (1, 2, 5))
            if len(ticks) > wanted + 2:
                return _logarithmic_ticks(self.low, self.high, (1,))
            if len(ticks) > 1:
                return ticks
        rough = (self.high - self.low) / max(wanted, 1)
        magnitude = 10 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Returns one element. `children` are markup already; attribute values are escaped, `_` in names becomes `-`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, *, anchor: str = "start", class_: str = "") -> str:
    """Returns a line of text whose baseline is at `y`; `anchor` is start, middle or end."""
    extra = {"class_": class_} if class_ else {}
    return element("text", escape(content, quote=False), x=x, y=y, text_anchor=anchor, **extra)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Returns a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rectangle(box: Box, class_: str, tip: str = "") -> str:
    """Returns a rectangle; `tip` is shown when the pointer rests on it."""
    children = [element("title", escape(tip, quote=False))] if tip else []
    size = {"width": max(box.right - box.left, 0), "height": max(box.bottom - box.top, 0)}
    shape = {"x": box.left, "y": box.top, **size}
    return element("rect", *children, **shape, class_=class_)


def path(points: list[tuple[float, float]], class_: str, *, close: bool = False) -> str:
    """Returns a polyline through `points`."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=f"M{steps}{'Z' if close else ''}", class_=class_)


def drawing(slug: str, size: tuple[float, float], title: str, description: str, parts: list[str]) -> str:
    """Returns a whole `<svg>` that screen readers announce by `title` and `description`; `slug` makes ids unique."""
    labels = [
        element("title", escape(title, quote=False), id=f"{slug}-title"),
        element("desc", escape(description, quote=False), id=f"{slug}-description"),
    ]
    width, height = size
    return element(
        "svg",
        *labels,
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{slug}-title {slug}-description",
        class_="plot",
    )


def width_of(content: str) -> float:
    """Returns about how wide a text is, in view box units."""
    return len(content) * _WIDTH_OF_LETTER


def widest(content: str) -> float:
    """Returns how wide a text is at most, in view box units: bold, on a phone, in a wide font."""
    return len(content) * _WIDEST_LETTER


def shortened(content: str, room: float) -> str:
    """Returns a text that is at most `room` view box units wide, cut with an ellipsis where it is longer."""
    most = max(int(room / _WIDEST_LETTER), 1)
    return content if len(content) <= most else content[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def short_number(value: float) -> str:
    """Returns a tick label: no trailing zeros, no exponent."""
    return f"{value:,.3f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"


def place_label(content: str, at: tuple[float, float], taken: list[Box], bounds: Box) -> tuple[float, float, str]:
    """Returns x, baseline and anchor of a label near a point, in the first place that covers nothing in `taken`.

    The place found is added to `taken`. It is within `bounds` for any text that is no wider than these; where every
    place is covered, the least far one is used all the same.
    """
    x, y = at
    width = widest(content)
    shifts = (0, -14, 14, -28, 28, -42, 42, -56, 56)
    candidates = [
        (x + side, y + 4 + shift, anchor) for shift in shifts for side, anchor in ((10, "start"), (-10, "end"))
    ]
    candidates += [(x, y + shift, "middle") for shift in (-14, 22)]
    flush = max(min(x - width / 2, bounds.right - width), bounds.left)
    candidates += [(flush, y + shift, "start") for shift in (-14, 22, -28, 36, -42, 50)]
    boxes = [_text_box(place, width) for place in candidates]
    inside = [index for index, box in enumerate(boxes) if _within(box, bounds)] or [len(boxes) - 1]
    free = [index for index in inside if not any(boxes[index].overlaps(box) for box in taken)]
    chosen = (free or inside)[0]
    taken.append(boxes[chosen])
    return candidates[chosen]


def _text_box(place: tuple[float, float, str], width: float) -> Box:
    x, baseline, anchor = place
    left = x if anchor == "start" else x - width if anchor == "end" else x - width / 2
    return Box(left, baseline - HEIGHT_OF_TEXT + 2, left + width, baseline + 3)


def _within(inner: Box, outer: Box) -> bool:
    across = inner.left >= outer.left and inner.right <= outer.right
    return across and inner.top >= outer.top and inner.bottom <= outer.bottom


def _logarithmic_ticks(low: float, high: float, factors: tuple[int, ...]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def _attribute(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
