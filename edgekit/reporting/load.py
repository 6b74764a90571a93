"""What a model does under load, as words: one line for each thing that was found."""

from __future__ import annotations

from edgekit.reporting import wording
from edgekit.results import (
    Conversations,
    ConversationsAtOnce,
    GenerationUnderLoad,
    Offline,
    Server,
    ServerTrial,
    Sustained,
    UnderLoad,
)

_OUTCOMES = {True: "met", False: "missed", None: "open"}


def lines(found: UnderLoad | GenerationUnderLoad) -> list[str]:
    """Returns the figure first, then what it rests on."""
    if isinstance(found, Offline):
        return _offline(found)
    if isinstance(found, Conversations):
        return _conversations(found)
    return _server(found) if isinstance(found, Server) else _sustained(found)


def _conversations(found: Conversations) -> list[str]:
    best, alone = found.best, found.numbers[0]
    gain = wording.times(best.tokens_per_s / alone.tokens_per_s)
    by_number = "; ".join(map(_at_once, found.numbers))
    return [
        f"At once: {wording.number(best.tokens_per_s)} tokens/s in {best.conversations} conversations, {gain} what one "
        f"alone writes, after prompts of {found.context_tokens:,} tokens.",
        f"By conversations: {by_number}.",
    ]


def _at_once(each: ConversationsAtOnce) -> str:
    gaps = f"p50 {wording.milliseconds(each.inter_token_p50_ms)} p99 {wording.milliseconds(each.inter_token_p99_ms)}"
    return (
        f"{each.conversations}: {wording.number(each.tokens_per_s)} tokens/s, first token "
        f"{wording.milliseconds(each.first_token_ms)}, between tokens {gaps}, "
        f"{wording.mebibytes(each.peak_rss_bytes)} peak"
    )


def _offline(found: Offline) -> list[str]:
    by_size = ", ".join(f"{each.batch}: {wording.number(each.rows_per_s)}" for each in found.batches)
    return [
        f"Offline: {wording.number(found.rows_per_s)} rows/s in batches of {found.best_batch}.",
        f"Rows/s by batch: {by_size}.",
    ]


def _server(found: Server) -> list[str]:
    bound = wording.milliseconds(found.p99_bound_ms)
    if found.context_tokens is not None:
        bound += f" to the first token (prompts of {found.context_tokens:,} tokens, answers of {found.new_tokens})"
    if found.rate_per_s is None or found.utilization is None:
        slowest = min(found.trials, key=lambda trial: trial.rate_per_s)
        first = (
            f"Server: the p99 does not keep {bound} at any rate that was tried, down to "
            f"{wording.number(slowest.rate_per_s)} queries/s."
        )
    else:
        first = (
            f"Server: up to {wording.number(found.rate_per_s)} queries/s with a p99 of at most {bound}; the model is "
            f"then busy {wording.percent(found.utilization)} of the time."
        )
    tried = sorted(found.trials, key=lambda trial: trial.rate_per_s)
    return [first, f"Tried: {'; '.join(map(_trial, tried))}."]


def _trial(trial: ServerTrial) -> str:
    span = wording.number_range(trial.p99_interval_ms)
    return f"{wording.number(trial.rate_per_s)}/s p99 {wording.number(trial.p99_ms)} ms {span} {_OUTCOMES[trial.met]}"


def _sustained(found: Sustained) -> list[str]:
    last = found.windows[-1]
    last_s = last.calls * last.p50_ms / 1e3 if last.span_s is None else last.span_s
    minutes = wording.seconds(last.start_s + last_s)
    p50s = ", ".join(wording.number(window.p50_ms) for window in found.windows)
    return [
        f"Sustained for {minutes}: the last quarter takes {wording.times(found.slowdown)} as long as the first, the "
        f"slowest window {wording.times(found.worst_slowdown)}.",
        f"p50 by window, ms: {p50s}.",
    ]
