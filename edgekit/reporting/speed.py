"""How fast a model is, as words: latency of a call for classifiers, first token and decoding for language models.

The only module of reporting that knows which kind of measurement it has before it.
"""

from __future__ import annotations

from edgekit.reporting import resources, wording
from edgekit.results import (
    AnyMeasurement,
    BuildResult,
    Conditions,
    GenerationDepth,
    GenerationMeasurement,
    Interval,
    Measurement,
    Verdict,
)

_WIDE = 0.2
"""Width of a 95 % interval, as a share of its value, from which a figure is doubtful."""
_PASSING_LOAD = 0.5
"""Load beyond the idle cores that is not yet worth a word: a moment's work."""
_OTHER_WORK = 0.05
"""Share of the measured cores' time that other processes may take without a word."""
_STOLEN = 0.02
"""Share that the host of a virtual machine may take."""
_SLOWER = 0.1
"""Share by which the frequency may fall."""

AGAINST_IT: dict[Verdict, str] = {
    "better": "slower",
    "worse": "faster",
    "no difference": "no difference",
    "inconclusive": "inconclusive",
}
"""The verdict on the first, as said of the other one."""


def scenario(measurement: AnyMeasurement) -> str:
    """Returns what was measured, for example `onnxruntime 1.32.0, 1 x 64 tokens, 1 thread`."""
    if isinstance(measurement, GenerationMeasurement):
        depths = wording.join_words([f"{depth.context_tokens:,}" for depth in measurement.depths])
        size = f"{measurement.deepest.new_tokens} tokens written after {depths}"
    else:
        size = f"{measurement.batch} {wording.TIMES} {measurement.length} tokens"
    return f"{measurement.runtime} {measurement.runtime_version}, {size}, {threads(measurement.threads)}"


def threads(count: int) -> str:
    """Returns a number of threads with its unit."""
    return "1 thread" if count == 1 else f"{count} threads"


def writes(result: BuildResult) -> bool:
    """Returns whether the build's models were measured writing text."""
    return any(isinstance(export.measurement, GenerationMeasurement) for export in result.exports)


def as_generation(measurement: AnyMeasurement) -> GenerationMeasurement | None:
    """Returns a measurement of writing; None for anything else."""
    return measurement if isinstance(measurement, GenerationMeasurement) else None


def summary_title(result: BuildResult) -> str:
    """Returns the title of a column of `summary`."""
    return "first token / decode" if writes(result) else "p50 / p95"


def column_title(result: BuildResult) -> str:
    """Returns the title of a column of `summary` in a page."""
    return f"Speed, {summary_title(result)}" if writes(result) else f"Latency, {summary_title(result)}"


def summary(measurement: AnyMeasurement) -> str:
    """Returns the two figures that matter most, as `3.87 / 4.10 ms` or `212 ms / 87.1 tokens/s`."""
    if isinstance(measurement, GenerationMeasurement):
        deepest = measurement.deepest
        return f"{wording.milliseconds(deepest.first_token_ms)} / {tokens_per_s(deepest.decode_tokens_per_s)}"
    return f"{wording.number(measurement.p50_ms)} / {wording.milliseconds(measurement.p95_ms)}"


def noun(measurement: AnyMeasurement) -> str:
    """Returns what the samples of a measurement are the times of: calls or tokens."""
    return "token" if isinstance(measurement, GenerationMeasurement) else "call"


def headline(measurement: AnyMeasurement) -> tuple[str, str, list[str]]:
    """Returns title, value and details of the figure that a measurement is known by."""
    if not isinstance(measurement, GenerationMeasurement):
        p95 = wording.milliseconds(measurement.p95_ms)
        return "p50 latency", wording.milliseconds(measurement.p50_ms), [f"{scenario(measurement)}; p95 {p95}"]
    deepest = measurement.deepest
    first = _milliseconds(deepest.first_token_ms, deepest.first_token_interval_ms)
    details = [
        f"{depth_title(deepest)}; first token {first}, prefill {tokens_per_s(deepest.prefill_tokens_per_s)}",
        scenario(measurement),
        roofline(measurement),
    ]
    return "Decode speed", tokens_per_s(deepest.decode_tokens_per_s), [detail for detail in details if detail]


def tokens_per_s(rate: float) -> str:
    """Returns a rate with its unit."""
    return f"{wording.number(rate)} tokens/s"


def gigabytes_per_s(rate: float) -> str:
    """Returns a bandwidth in bytes a second as GB/s."""
    return f"{rate / 1e9:.1f} GB/s"


def doubts(measurement: AnyMeasurement, *, in_build: bool = False) -> str:
    """Returns one sentence where the machine was too busy or unsteady to trust the figures, else nothing.

    Too busy: the load average before it left the threads no cores of their own. A build's own stages may have filled
    every core just before, so there only a load beyond all cores shows that something else ran.
    """
    cores = measurement.machine.cores
    idle = cores if in_build else max(cores - measurement.threads, 0)
    reasons = []
    if measurement.load_average > idle + _PASSING_LOAD:
        on = "1 core" if cores == 1 else f"{cores} cores"
        reasons.append(
            f"the load average before it was {measurement.load_average:.2f} on {on}, of which it needs "
            f"{measurement.threads} for itself"
        )
    reasons += disturbances(measurement.conditions)
    name, value, interval = _known_by(measurement)
    if interval.high - interval.low > _WIDE * value:
        width = wording.percent((interval.high - interval.low) / value)
        reasons.append(f"the interval of its {name}, {wording.number_range(interval)}, spans {width} of it")
    if not reasons:
        return ""
    advice = "Measure again when nothing else runs" + (", with edgekit bench." if in_build else ".")
    return f"The machine was not quiet: {wording.join_words(reasons)}. {advice}"


def disturbances(conditions: Conditions | None) -> list[str]:
    """Returns what went on beside the sampling that may have changed it."""
    if conditions is None:
        return []
    reasons = []
    if (conditions.other_work_share or 0.0) > _OTHER_WORK:
        reasons.append(f"other work took {wording.percent(conditions.other_work_share or 0.0)} of its cores' time")
    if (conditions.stolen_share or 0.0) > _STOLEN:
        reasons.append(f"the host took {wording.percent(conditions.stolen_share or 0.0)} of its cores' time")
    before, low = conditions.frequency_before_mhz, conditions.frequency_low_mhz
    if before is not None and low is not None and low < (1 - _SLOWER) * before:
        reasons.append(f"its cores' frequency fell from {before:,.0f} to {low:,.0f} MHz")
    return reasons


def beside(conditions: Conditions | None) -> str:
    """Returns what went on beside the sampling, for example `other work 0.3 %, stolen 0.0 %, 2,400 to 2,600 MHz`."""
    if conditions is None:
        return ""
    parts = []
    if conditions.other_work_share is not None:
        parts.append(f"other work {wording.percent(conditions.other_work_share)}")
    if conditions.stolen_share is not None:
        parts.append(f"stolen {wording.percent(conditions.stolen_share)}")
    low, high = conditions.frequency_low_mhz, conditions.frequency_high_mhz
    parts.append("frequency not told" if low is None or high is None else f"{low:,.0f} to {high:,.0f} MHz")
    return ", ".join(parts)


def _spread(measurement: Measurement) -> str:
    """Returns how the samples scatter: the median absolute deviation, and how many lie far out."""
    if measurement.mad_ms is None or measurement.outliers is None:
        return ""
    together = measurement.calls_per_sample
    means = f"; each sample the mean of up to {together:,} calls" if together > 1 else ""
    return f"MAD {wording.milliseconds(measurement.mad_ms)}, {measurement.outliers:,} outliers, kept{means}"


def _known_by(measurement: AnyMeasurement) -> tuple[str, float, Interval]:
    """Returns name, value and interval of the figure that a measurement is known by."""
    if not isinstance(measurement, GenerationMeasurement):
        return "p50", measurement.p50_ms, measurement.p50_interval_ms
    deepest = measurement.deepest
    return "decode speed", deepest.decode_tokens_per_s, deepest.decode_tokens_per_s_interval


def loading(measurement: AnyMeasurement) -> str:
    """Returns the time to open the model, cold and warm where both are known."""
    if not isinstance(measurement, GenerationMeasurement):
        return wording.milliseconds(measurement.load_ms)
    warm = f"{wording.milliseconds(measurement.load_warm_ms)} warm"
    if measurement.load_cold_ms is None:
        return warm
    return f"{wording.milliseconds(measurement.load_cold_ms)} cold, {warm}"


def roofline(measurement: GenerationMeasurement) -> str:
    """Returns how near decoding at the deepest context is to the memory's bandwidth, and the fit over depths."""
    parts = []
    share, bandwidth = measurement.deepest.roofline_share, measurement.memory_bandwidth_bytes_per_s
    if share is not None and bandwidth is not None:
        parts.append(f"{wording.percent(share)} of the roofline at {gigabytes_per_s(bandwidth)}")
    if measurement.fit is not None:
        overhead = wording.milliseconds(measurement.fit.overhead_ms)
        parts.append(f"a token takes its bytes at {gigabytes_per_s(measurement.fit.bytes_per_s)} plus {overhead}")
    return "; ".join(parts)


def share_of_roofline(depth: GenerationDepth) -> str:
    """Returns the share of the roofline at one depth, or a dash."""
    return wording.ABSENT if depth.roofline_share is None else wording.percent(depth.roofline_share)


def depth_title(depth: GenerationDepth) -> str:
    """Returns the name of a depth, for example `after 512 tokens`."""
    return f"after {depth.context_tokens:,} tokens"


def rows(measurements: list[AnyMeasurement]) -> list[tuple[str, list[str]]]:
    """Returns the figures of several measurements, each with its title and one text a measurement."""
    calls = [entry for entry in measurements if not isinstance(entry, GenerationMeasurement)]
    written = [entry for entry in measurements if isinstance(entry, GenerationMeasurement)]
    found = [("scenario", [scenario(entry) for entry in measurements])]
    if len(calls) == len(measurements):
        for name in ("p50", "p90", "p95", "p99"):
            values = [(getattr(entry, f"{name}_ms"), getattr(entry, f"{name}_interval_ms")) for entry in calls]
            found.append((name, [_milliseconds(*pair) for pair in values]))
        found += [
            ("throughput", [f"{entry.rows_per_s:,.1f} rows/s" for entry in calls]),
            ("samples", [f"{len(entry.samples_ms):,} after {entry.warmup_runs} to warm up" for entry in calls]),
            ("spread", [_spread(entry) for entry in calls]),
            ("warm-up", ["settled" if entry.settled else "never settled" for entry in calls]),
        ]
    else:
        for tokens in sorted({depth.context_tokens for entry in written for depth in entry.depths}):
            found += _depth_rows(tokens, measurements)
        found.append(("roofline", [roofline(entry) if (entry := as_generation(one)) else "" for one in measurements]))
    return [
        *found,
        ("load", [loading(entry) for entry in measurements]),
        ("peak memory", [wording.mebibytes(entry.peak_rss_bytes) for entry in measurements]),
        *resources.rows(measurements),
        ("model files", [wording.mebibytes(entry.model_bytes) for entry in measurements]),
        ("load average", [_load(entry) for entry in measurements]),
        ("on its cores", [beside(entry.conditions) for entry in measurements]),
    ]


def _load(measurement: AnyMeasurement) -> str:
    """Returns the load average before, and after where it is known."""
    before, found = f"{measurement.load_average:.2f}", measurement.conditions
    return before if found is None else f"{before} before, {found.load_average_after:.2f} after"


def _depth_rows(tokens: int, measurements: list[AnyMeasurement]) -> list[tuple[str, list[str]]]:
    """Returns the figures at one length of prompt; a measurement without it has empty cells."""
    depths = []
    for entry in measurements:
        written = as_generation(entry)
        known = [] if written is None else written.depths
        depths.append(next((depth for depth in known if depth.context_tokens == tokens), None))
    return [
        (
            f"after {tokens:,} tokens: {title}",
            ["" if depth is None else _depth_figure(title, depth) for depth in depths],
        )
        for title in ("first token", "prefill", "decode", "token p50", "token p95", "token p99")
    ]


def _depth_figure(title: str, depth: GenerationDepth) -> str:
    if title == "first token":
        return _milliseconds(depth.first_token_ms, depth.first_token_interval_ms)
    if title == "prefill":
        return _rate(depth.prefill_tokens_per_s, depth.prefill_tokens_per_s_interval)
    if title == "decode":
        return _rate(depth.decode_tokens_per_s, depth.decode_tokens_per_s_interval)
    name = title.removeprefix("token ")
    return _milliseconds(getattr(depth, f"inter_token_{name}_ms"), getattr(depth, f"inter_token_{name}_interval_ms"))


def _milliseconds(value_ms: float, interval: Interval) -> str:
    return f"{wording.milliseconds(value_ms)} ({wording.number_range(interval)})"


def _rate(rate: float, interval: Interval) -> str:
    return f"{tokens_per_s(rate)} ({wording.number_range(interval)})"
