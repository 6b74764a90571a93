"""What was found out about an export, as the Markdown of its card: quality, parity, speed, budget, estimates.

The only module of packaging that knows which kind of result it has before it.
"""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest
from edgekit.results import (
    AnyMeasurement,
    AnyParity,
    AnyQuality,
    BudgetCheck,
    Estimate,
    EstimateCheck,
    GenerationMeasurement,
    Interval,
    LanguageParity,
    LanguageQuality,
    Measurement,
    Unverified,
)


def quality_text(quality: AnyQuality | None) -> str:
    """Returns the quality of the exported file as a table."""
    if quality is None:
        return "Not measured on the exported file."
    found = quality.headline
    lines = [
        f"The exported file itself, run by its runtime on {found.amount:,} {found.unit} of `{quality.split}`:",
        "",
        "| | value | 95 % interval |",
        "| --- | ---: | ---: |",
    ]
    lines += _language_rows(quality) if isinstance(quality, LanguageQuality) else []
    if not isinstance(quality, LanguageQuality):
        lines.append(_share_row("accuracy", quality.accuracy, quality.accuracy_interval))
        for name, part in quality.parts.items():
            lines.append(_share_row(f"accuracy on `{name}`", part.accuracy, part.accuracy_interval))
        for label, recall in quality.per_label_recall.items():
            lines.append(
                _share_row(f"recall of `{flat(label)}`", recall, quality.per_label_recall_intervals.get(label))
            )
    lines.append(f"| cross-entropy | {quality.cross_entropy:.4f} nats | |")
    if not isinstance(quality, LanguageQuality) and quality.accuracy_change is not None:
        interval = quality.accuracy_change_interval
        spread = "" if interval is None else f"{_points(interval.low)} to {_points(interval.high)}"
        lines.append(f"| change since the teacher | {_points(quality.accuracy_change)} points | {spread} |")
    if quality.teacher_agreement is not None:
        chosen = "token" if isinstance(quality, LanguageQuality) else "label"
        lines.append(f"| same {chosen} as the teacher | {_percent(quality.teacher_agreement)} | |")
    return "\n".join(lines)


def _language_rows(quality: LanguageQuality) -> list[str]:
    """Returns perplexity, on each split too, and the distance from the teacher."""
    rows = [_number_row("perplexity", quality.perplexity, quality.perplexity_interval)]
    for name, part in quality.parts.items():
        rows.append(_number_row(f"perplexity on `{name}`", part.perplexity, part.perplexity_interval))
    if quality.perplexity_ratio is not None:
        rows.append(
            _number_row("perplexity over the teacher's", quality.perplexity_ratio, quality.perplexity_ratio_interval)
        )
    if quality.divergence is not None:
        rows.append(f"| KL from the teacher | {quality.divergence:.3g} nats a token | |")
    asked = quality.multiple_choice
    if asked is not None:
        name = f"questions answered rightly, of {asked.questions:,} (guesses {_percent(asked.chance)})"
        rows.append(_share_row(name, asked.accuracy, asked.accuracy_interval))
    said = quality.answers
    if said is not None:
        rows.append(_share_row(f"prompts answered, of {said.prompts}", said.answered, said.answered_interval))
    return rows


def measurements_text(manifest: Manifest) -> str:
    """Returns parity, measurements with their machine, the budget, and, apart from them, the estimates."""
    facts = manifest.facts
    parts = []
    if facts.parity is not None:
        parts += [_parity(parity) for parity in (facts.parity, *facts.other_parities)]
    if facts.measurement is not None:
        parts.append(_measured(facts.measurement, manifest))
    if facts.speed_up is not None:
        speed = facts.speed_up
        parts.append(
            f"Its own float32 export takes {speed.ratio_p50:.2f} times as long ({speed.interval.low:.2f} to "
            f"{speed.interval.high:.2f}, {speed.rounds} interleaved rounds on that machine)."
        )
    if facts.budget is not None and facts.budget.checks:
        rows = [_check_row(check) for check in facts.budget.checks]
        parts.append("\n".join(["| budget | result | |", "| --- | --- | --- |", *rows]))
    parts += [_estimated(estimate, manifest.target.name) for estimate in facts.estimates]
    parts += [_checked(check) for check in facts.estimate_checks]
    parts += [f"Note: {flat(note)}" for note in facts.notes]
    return "\n\n".join(parts) or "None."


def _parity(parity: AnyParity) -> str:
    if isinstance(parity, Unverified):
        return f"Not compared with torch under {parity.runtime}: {flat(parity.reason)}"
    tokenizer = f"{parity.tokenizer_mismatches} of {parity.tokenizer_texts} texts are tokenized otherwise."
    difference = f"the largest difference of a logit is {parity.max_abs_diff:.2g}, the mean {parity.mean_abs_diff:.2g}"
    if not isinstance(parity, LanguageParity):
        emulation = parity.emulation
        place = "" if emulation is None else f" on {emulation.cpu}, emulated by {emulation.emulator}"
        return (
            f"Against torch, under {parity.runtime}{place}, on {parity.rows:,} texts: {difference}, and "
            f"{_percent(parity.label_agreement)} of the labels agree. {tokenizer}"
        )
    greedy = ""
    if parity.greedy_prompts:
        greedy = (
            f" Greedy text is equal for {parity.greedy_equal_tokens:.1f} of {parity.greedy_tokens} tokens in the mean "
            f"of {parity.greedy_prompts} prompts."
        )
    same = f"{_percent(parity.top1_agreement)} of the likeliest tokens agree"
    return (
        f"Against torch, under {parity.runtime} ({parity.driving}), on {parity.tokens:,} tokens of "
        f"{parity.documents:,} texts: {difference}, KL {parity.divergence:.2g} nats a token, and {same}.{greedy} "
        f"{tokenizer}"
    )


def _measured(found: AnyMeasurement, manifest: Manifest) -> str:
    machine = found.machine
    target = manifest.target.name
    where = "" if manifest.facts.measured_on_target else f" These are that machine's figures, not a {target}'s."
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    scenario, rows = _generation(found) if isinstance(found, GenerationMeasurement) else _calls(found)
    return (
        f"Measured on {flat(machine.cpu)} ({machine.architecture}, {machine.cores} cores, {machine.operating_system})."
        f"{where} {found.runtime} {found.runtime_version}, {threads}, {scenario} in a fresh process:\n\n"
        "| | value | 95 % interval |\n| --- | ---: | ---: |\n"
        + "".join(f"| {name} | {value} | {interval}".rstrip() + " |\n" for name, value, interval in rows)
        + f"| peak memory of the process | {mebibytes(found.peak_rss_bytes)} | |\n"
        f"| model files | {mebibytes(found.model_bytes)} | |"
    )


def _calls(found: Measurement) -> tuple[str, list[tuple[str, str, str]]]:
    """Returns the scenario and the rows of a measurement of calls."""
    rows = [
        ("p50", f"{found.p50_ms:.3g} ms", _spread(found.p50_interval_ms)),
        ("p95", f"{found.p95_ms:.3g} ms", _spread(found.p95_interval_ms)),
    ]
    return f"{found.batch} x {found.length} tokens, {len(found.samples_ms):,} samples", rows


def _generation(found: GenerationMeasurement) -> tuple[str, list[tuple[str, str, str]]]:
    """Returns the scenario and the rows of a measurement of writing, three for each depth of context."""
    rows = []
    for depth in found.depths:
        after = f"after {depth.context_tokens:,} tokens"
        first, prefill, decode = (
            (depth.first_token_ms, depth.first_token_interval_ms),
            (depth.prefill_tokens_per_s, depth.prefill_tokens_per_s_interval),
            (depth.decode_tokens_per_s, depth.decode_tokens_per_s_interval),
        )
        rows += [
            (f"first token {after}", f"{_figure(first[0])} ms", _spread(first[1])),
            (f"prefill of {depth.context_tokens:,} tokens", f"{_figure(prefill[0])} tokens/s", _spread(prefill[1])),
            (f"decode {after}", f"{_figure(decode[0])} tokens/s", _spread(decode[1])),
        ]
    share = found.deepest.roofline_share
    if share is not None:
        rows.append(("decode over what memory bandwidth allows", _percent(share), ""))
    return f"{found.deepest.new_tokens} tokens written", rows


def _estimated(estimate: Estimate, target: str) -> str:
    holds = "; ".join(flat(assumption) for assumption in estimate.assumptions)
    quantity = estimate.quantity if target in estimate.quantity else f"{estimate.quantity} on {target}"
    return (
        f"> **Estimate, not measured**: {flat(quantity)} ~ {estimate.low:.3g} to "
        f"{estimate.high:.3g} {estimate.unit}, from `{flat(estimate.formula)}`. It holds only if: {holds}."
    )


def _checked(check: EstimateCheck) -> str:
    estimate = check.estimate
    place = "within the range" if check.within else "outside the range"
    return (
        f"Estimate against measurement: {flat(estimate.quantity)} ~ {estimate.low:.3g} to {estimate.high:.3g} "
        f"{estimate.unit}, measured {check.measured:.3g} {estimate.unit}: {place}, {check.ratio:.2f} times its middle."
    )


def _check_row(check: BudgetCheck) -> str:
    return f"| {check.name} | {check.status} | {flat(check.explanation)} |"


def _share_row(name: str, share: float, interval: Interval | None) -> str:
    spread = "" if interval is None else f"{_percent(interval.low)} to {_percent(interval.high)}"
    return f"| {name} | {_percent(share)} | {spread} |"


def _number_row(name: str, value: float, interval: Interval | None) -> str:
    return f"| {name} | {_figure(value)} | {'' if interval is None else _spread(interval)} |"


def _spread(interval: Interval) -> str:
    return f"{_figure(interval.low)} to {_figure(interval.high)}"


def _figure(value: float) -> str:
    """Returns three significant digits, and all digits before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def flat(text: str) -> str:
    """Returns text on one line that neither ends a table cell nor opens a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def mebibytes(size: int) -> str:
    """Returns a size in bytes as MiB, or as KiB below one."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
