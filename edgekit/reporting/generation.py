"""Language models that were measured in turn, as words: a row for each at each depth, and one for each as a whole."""

from __future__ import annotations

from edgekit.reporting import speed, wording
from edgekit.results import GenerationComparison, GenerationDepth, GenerationRatio, Interval

DEPTH_COLUMNS = (
    "",
    "first token,\nms",
    "prefill,\ntokens/s",
    "decode,\ntokens/s",
    "p95 of a\ntoken, ms",
    "of the\nroofline",
    "time of\na token",
)
PROCESS_COLUMNS = ("", "load", "peak memory", "of which\nfile pages", "model files", "bandwidth used,\noverhead")


def depth_rows(comparison: GenerationComparison) -> list[tuple[str, list[list[str]]]]:
    """Returns each depth's title with the cells of `DEPTH_COLUMNS` for each model that was measured there."""
    depths = sorted({depth.context_tokens for entry in comparison.measurements for depth in entry.depths})
    return [(f"after {tokens:,} tokens", _rows_at(comparison, tokens)) for tokens in depths]


def process_rows(comparison: GenerationComparison) -> list[list[str]]:
    """Returns the cells of `PROCESS_COLUMNS` for each model."""
    return [
        [
            _folded(name),
            _folded(speed.loading(entry)),
            wording.mebibytes(entry.peak_rss_bytes),
            wording.mebibytes(entry.rss_file_bytes),
            wording.mebibytes(entry.model_bytes),
            wording.ABSENT
            if entry.fit is None
            else f"{speed.gigabytes_per_s(entry.fit.bytes_per_s)}\n{wording.milliseconds(entry.fit.overhead_ms)}",
        ]
        for name, entry in zip(comparison.names, comparison.measurements, strict=True)
    ]


def conditions(comparison: GenerationComparison) -> str:
    """Returns in one line how it was measured: rounds, tokens, memory bandwidth, machine."""
    first = comparison.measurements[0]
    bandwidths = {
        entry.threads: entry.memory_bandwidth_bytes_per_s
        for entry in comparison.measurements
        if entry.memory_bandwidth_bytes_per_s is not None
    }
    read = wording.join_words(
        [f"{speed.gigabytes_per_s(rate)} with {speed.threads(count)}" for count, rate in sorted(bandwidths.items())]
    )
    return (
        f"{comparison.rounds} rounds in turn, {first.deepest.new_tokens} tokens after the first; memory is read at "
        f"{read or 'an unknown rate'}; load average {first.load_average:.2f}; {wording.machine(first.machine)}"
    )


def _rows_at(comparison: GenerationComparison, tokens: int) -> list[list[str]]:
    ratios = {ratio.measurement: ratio for ratio in comparison.ratios if ratio.context_tokens == tokens}
    rows = []
    for place, (name, entry) in enumerate(zip(comparison.names, comparison.measurements, strict=True)):
        rows += [
            [_folded(name), *_figures(depth), _against_first(place, ratios.get(place))]
            for depth in entry.depths
            if depth.context_tokens == tokens
        ]
    return rows


def _figures(depth: GenerationDepth) -> list[str]:
    return [
        wording.number(depth.first_token_ms),
        wording.number(depth.prefill_tokens_per_s),
        f"{wording.number(depth.decode_tokens_per_s)}{_range(depth.decode_tokens_per_s_interval)}",
        wording.number(depth.inter_token_p95_ms),
        speed.share_of_roofline(depth),
    ]


def _against_first(place: int, ratio: GenerationRatio | None) -> str:
    """Returns how much longer a token takes than the first model's."""
    if place == 0:
        return f"1{wording.TIMES}"
    if ratio is None:
        return ""
    verdict = "" if ratio.verdict is None else f"\n{speed.AGAINST_IT[ratio.verdict]}"
    return f"{wording.times(ratio.token_time)}{_range(ratio.token_time_interval)}{verdict}"


def _range(interval: Interval) -> str:
    return f"\n{wording.number_range(interval)}"


def _folded(words: str) -> str:
    """Returns words on two lines, parted at the first comma."""
    return words.replace(", ", "\n", 1)
