"""Judges a model's quality against a budget: what it lost since its teacher, and whether it answers at all."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.benchmarking.judging import Found, inconclusive, judge
from edgekit.results import AnyQuality, BudgetCheck, Headline, Interval, LanguageQuality
from edgekit.target import Budget


def check_quality(budget: Budget, quality: AnyQuality | None) -> Iterator[BudgetCheck]:
    """Yields one check for every limit on quality that the budget sets."""
    headline = None if quality is None else quality.headline
    if budget.quality_drop is not None:
        yield _check_accuracy(budget.quality_drop, headline)
    if budget.perplexity_ratio is not None:
        yield _check_perplexity(budget.perplexity_ratio, headline)
    if budget.answered is not None:
        yield _check_answered(budget.answered, quality)


def _check_accuracy(limit: float, quality: Headline | None) -> BudgetCheck:
    name = "quality_drop"
    if quality is None or quality.metric != "accuracy" or quality.change is None or quality.change_interval is None:
        return inconclusive(name, limit, "The accuracy was not compared with the teacher's.")
    change = quality.change_interval
    words = (
        f"Accuracy changed by {_points(quality.change)} points "
        f"({_points(change.low)} to {_points(change.high)}) on {quality.amount:,} rows"
    )
    return judge(
        Found(
            name=name,
            limit=limit,
            value=-quality.change,
            interval=Interval(low=-change.high, high=-change.low, confidence=change.confidence),
            words=words,
            allowed=f"a drop of {100 * limit:g}",
            complaint="too much",
            advice="Evaluate on more rows.",
        )
    )


def _check_perplexity(limit: float, quality: Headline | None) -> BudgetCheck:
    name = "perplexity_ratio"
    if quality is None or quality.metric != "perplexity" or quality.change is None or quality.change_interval is None:
        return inconclusive(name, limit, "The perplexity was not compared with the teacher's.")
    ratio = quality.change_interval
    words = (
        f"Perplexity is {quality.change:.3f} times the teacher's ({ratio.low:.3f} to {ratio.high:.3f}) on "
        f"{quality.amount:,} tokens"
    )
    return judge(
        Found(
            name=name,
            limit=limit,
            value=quality.change,
            interval=ratio,
            words=words,
            allowed=f"{limit:g} times",
            complaint="too much",
            advice="Evaluate on more text.",
        )
    )


def _check_answered(limit: float, quality: AnyQuality | None) -> BudgetCheck:
    name = "answered"
    found = quality.answers if isinstance(quality, LanguageQuality) else None
    if found is None:
        return inconclusive(name, limit, "No prompt was asked: evaluate on a split of conversations.")
    low, high = found.answered_interval.low, found.answered_interval.high
    return judge(
        Found(
            name=name,
            limit=limit,
            value=found.answered,
            interval=found.answered_interval,
            words=f"{found.answered:.0%} of {found.prompts} prompts got an answer ({low:.0%} to {high:.0%})",
            allowed=f"{limit:.0%}",
            complaint="too few; the others got an empty one",
            advice="Ask more prompts (evaluate.answers).",
            least=True,
        )
    )


def _points(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "\N{MINUS SIGN}")
