"""Values as words: the one spelling of sizes, times, shares, intervals and verdicts in every kind of report.

It knows nothing of HTML, Markdown or terminals; its strings are plain text.
"""

from __future__ import annotations

from typing import Any

from edgekit.results import BudgetCheck, CheckStatus, Estimate, Interval, Machine, Verdict

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
ABSENT = "\N{EN DASH}"

_CONTROL = dict.fromkeys(
    [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF],
    "\N{REPLACEMENT CHARACTER}",
)

CHECK_TITLES = {
    "file_bytes": "File size",
    "peak_memory_bytes": "Peak memory",
    "p95_ms": "p95 latency",
    "quality_drop": "Quality drop",
    "perplexity_ratio": "Perplexity ratio",
    "answered": "Prompts answered",
    "decode_tokens_per_s": "Decode speed",
    "first_token_ms": "Time to first token",
}
STATUS_TITLES: dict[CheckStatus, str] = {
    "met": "met",
    "missed": "missed",
    "inconclusive": "inconclusive",
    "not-measured": "not measured",
}
STATUS_SIGNS: dict[CheckStatus, str] = {
    "met": "\N{CHECK MARK}",
    "missed": "\N{BALLOT X}",
    "inconclusive": "?",
    "not-measured": ABSENT,
}


def mebibytes(size: float) -> str:
    """Returns a size in bytes as MiB, or as KiB below a tenth of one."""
    if abs(size) < 0.1 * 2**20:
        return f"{size / 2**10:.1f} KiB"
    return f"{size / 2**20:,.1f} MiB"


def milliseconds(time_ms: float) -> str:
    """Returns a time in ms with three significant digits, or in seconds from 10 s."""
    return f"{number(time_ms)} ms" if time_ms < 10_000 else f"{number(time_ms / 1000)} s"


def seconds(time_s: float) -> str:
    """Returns a stage's wall time: tenths of a second below a minute, else minutes and seconds."""
    if time_s < 60:
        return f"{time_s:.1f} s"
    minutes, rest = divmod(round(time_s), 60)
    return f"{minutes} min {rest:02d} s"


def percent(share: float) -> str:
    """Returns a share from 0 to 1 as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def points(change: float) -> str:
    """Returns a change of a share in signed percentage points, for example `+0.3`."""
    text = f"{100 * change:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", MINUS)


def percent_range(interval: Interval) -> str:
    """Returns an interval of shares, for example `81.9 to 86.4`."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def points_range(interval: Interval) -> str:
    """Returns an interval of changes of a share in signed points."""
    return f"{points(interval.low)} to {points(interval.high)}"


def number_range(interval: Interval) -> str:
    """Returns an interval of plain numbers or milliseconds, without a unit."""
    return f"{number(interval.low)} to {number(interval.high)}"


def span(low: float, high: float, unit: str) -> str:
    """Returns `low to high unit`, each with three significant digits."""
    return f"{number(low)} to {number(high)} {unit}"


def times(ratio: float) -> str:
    """Returns a ratio, for example `3.1x` with a proper sign."""
    return f"{number(ratio)}{TIMES}"


def judged(verdict: Verdict, margin: float) -> str:
    """Returns a verdict as words, with the margin that it was judged by."""
    return f"{verdict} (margin {percent(margin)})"


def speed_up(ratio: float, low: float, high: float, other: str) -> str:
    """Returns how the first of two models compares with `other`, given p50(second) / p50(first) and its interval."""
    if low <= 1 <= high:
        return f"no clear difference from {other} ({number(low)} to {number(high)})"
    if ratio > 1:
        return f"{times(ratio)} faster than {other} ({number(low)} to {number(high)})"
    return f"{times(1 / ratio)} slower than {other} ({number(1 / high)} to {number(1 / low)})"


def machine(fingerprint: Machine) -> str:
    """Returns a machine in one line: processor, architecture, cores, memory, system."""
    cores = "1 core" if fingerprint.cores == 1 else f"{fingerprint.cores} cores"
    return (
        f"{fingerprint.cpu}, {fingerprint.architecture}, {cores}, "
        f"{fingerprint.memory_bytes / 2**30:.0f} GiB, {fingerprint.operating_system}"
    )


def estimate(value: Estimate) -> str:
    """Returns an estimate so that it cannot be read as a measurement, for example `~ 4.1 to 12.3 ms (estimate)`."""
    return f"~ {amount(value)} (estimate)"


def estimated(value: Estimate, target: str) -> str:
    """Returns what an estimate is of, with its target named once."""
    return value.quantity if target in value.quantity else f"{value.quantity} on {target}"


def amount(value: Estimate) -> str:
    """Returns only the range of an estimate; the caller marks it as one."""
    if value.unit == "bytes":
        return f"{mebibytes(value.low)} to {mebibytes(value.high)}"
    return span(value.low, value.high, value.unit)


def check_title(name: str) -> str:
    """Returns a budget check's name for people."""
    return CHECK_TITLES.get(name, name.replace("_", " "))


def check_amount(name: str, value: float | None) -> str:
    """Returns a found value or a limit in the unit that the check's name ends with; a dash for None."""
    if value is None:
        return ABSENT
    if name.endswith("_bytes"):
        return mebibytes(value)
    if name.endswith("_ms"):
        return milliseconds(value)
    if name.endswith("_tokens_per_s"):
        return f"{number(value)} tokens/s"
    if name.endswith("_ratio"):
        return times(value)
    if name == "answered":
        return percent(value)
    return f"{points(value).removeprefix('+')} points" if name == "quality_drop" else number(value)


def check_range(check: BudgetCheck) -> str:
    """Returns the interval of a check's value in the unit of the value, which it does not repeat; or nothing."""
    if check.interval is None:
        return ""
    if check.name == "quality_drop":
        return points_range(check.interval)
    if check.name == "answered":
        return percent_range(check.interval)
    if check.name.endswith("_bytes"):
        return f"{mebibytes(check.interval.low)} to {mebibytes(check.interval.high)}"
    return number_range(check.interval)


def join_words(words: list[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def printable(value: Any) -> Any:
    """Returns a text with its control characters shown as U+FFFD (pages and XML may not hold them); else the value."""
    return value.translate(_CONTROL) if isinstance(value, str) else value


def small(number: float) -> str:
    """Returns a number that may be tiny, such as a difference of logits, with two significant digits."""
    return "0" if number == 0 else f"{number:.2g}"


def count(number: int) -> str:
    """Returns a whole number with thousands separated; millions as `22.7 M`."""
    return f"{number / 1e6:.1f} M" if number >= 1_000_000 else f"{number:,}"


def number(value: float) -> str:
    """Returns three significant digits without an exponent."""
    if value == 0:
        return "0"
    decimals = next((digits for below, digits in ((0.9995, 3), (9.995, 2), (99.95, 1)) if abs(value) < below), 0)
    return f"{value:,.{decimals}f}".replace("-", MINUS)
