"""The headline metric of a build: how accuracy and perplexity are spelled and drawn, in every kind of report alike.

The only module of reporting that knows which kind of quality it has before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit.reporting import wording
from edgekit.results import AnyQuality, BuildResult, Interval, LanguageQuality, MetricName, Quality

Tone = Literal["gain", "loss", "none"]


@dataclass(frozen=True)
class Metric:
    """One row of `METRICS`."""

    name: MetricName
    title: str
    higher_is_better: bool
    show: Callable[[float], str]
    """A value as text."""
    show_range: Callable[[Interval], str]
    """An interval of values, without the unit."""
    show_change: Callable[[float], str]
    """A change since the teacher, without its unit."""
    show_changes: Callable[[Interval], str]
    """An interval of changes."""
    change_unit: str
    """What follows a change: points, or times the teacher's."""
    change_title: str
    """Title of a column of changes."""
    agreement_title: str
    """Title of a column of `teacher_agreement`."""
    axis_title: str
    axis_scale: float
    """What a value is multiplied by on an axis."""
    axis_most: float
    """Largest value on an axis."""
    logarithmic: bool
    """Whether its axis is."""
    has_divergence: bool
    """Whether the distance from the teacher is measured beside it."""
    against_teacher: str
    """What follows a change with its unit where no column says so."""
    step_title: str
    """What follows a step's change in a tip."""
    method: str
    """How it is measured, for the page's last section."""

    def step(self, before: float, after: float) -> str:
        """Returns the change from one model of a build to the next: a difference, or a factor."""
        if self.logarithmic:
            return wording.times(after / before)
        return wording.points(after - before)

    def tone(self, before: float, after: float) -> Tone:
        """Returns whether a step is a gain or a loss; neither where it rounds to nothing."""
        change, least = (math.log(after / before), 0.005) if self.logarithmic else (after - before, 0.0005)
        if abs(change) < least:
            return "none"
        return "gain" if (change > 0) == self.higher_is_better else "loss"


METRICS: dict[MetricName, Metric] = {
    "accuracy": Metric(
        name="accuracy",
        title="Accuracy",
        higher_is_better=True,
        show=wording.percent,
        show_range=wording.percent_range,
        show_change=wording.points,
        show_changes=wording.points_range,
        change_unit=" points",
        change_title="change, points",
        agreement_title="same label as the teacher",
        axis_title="accuracy, %",
        axis_scale=100.0,
        axis_most=100.0,
        logarithmic=False,
        has_divergence=False,
        against_teacher=" against the teacher",
        step_title=" points",
        method="Accuracy on labelled text that training never saw, with Wilson score intervals; the change against the "
        "teacher on the same rows, with Newcombe's interval for paired shares.",
    ),
    "perplexity": Metric(
        name="perplexity",
        title="Perplexity",
        higher_is_better=False,
        show=wording.number,
        show_range=wording.number_range,
        show_change=wording.number,
        show_changes=wording.number_range,
        change_unit=" times the teacher's",
        change_title="times the teacher's",
        agreement_title="same token as the teacher",
        axis_title="perplexity, lower is better (log scale)",
        axis_scale=1.0,
        axis_most=math.inf,
        logarithmic=True,
        has_divergence=True,
        against_teacher="",
        step_title=" the perplexity before",
        method="Perplexity, exp of the mean negative log likelihood of a token, on text that training never saw: lower "
        "is better. Intervals are bootstrap intervals that draw whole texts; the ratio to the teacher's is paired, "
        "on the same tokens. KL is the mean over tokens of KL(teacher || model), in nats.",
    ),
}


def metric_of(quality: AnyQuality) -> Metric:
    """Returns the metric that a quality is judged by."""
    return METRICS[quality.headline.metric]


def build_metric(result: BuildResult) -> Metric:
    """Returns the metric of a whole build; accuracy where nothing was evaluated."""
    found = [result.teacher_quality, *(stage.quality for stage in result.stages)]
    found += [export.quality for export in result.exports]
    return next((metric_of(quality) for quality in found if quality is not None), METRICS["accuracy"])


def value(quality: AnyQuality) -> str:
    """Returns the value, for example `84.2 %` or `26.8`."""
    return metric_of(quality).show(quality.headline.value)


def value_range(quality: AnyQuality) -> str:
    """Returns its interval, for example `81.9 to 86.4`."""
    return metric_of(quality).show_range(quality.headline.interval)


def value_with_range(quality: AnyQuality) -> str:
    """Returns the value with its interval, for example `84.2 % (81.9 to 86.4)`."""
    return f"{value(quality)} ({value_range(quality)})"


def values_by_split(quality: AnyQuality) -> str:
    """Returns the value on each split, as `test 82.6 %, imdb 74.0 %`; empty where there is one."""
    return ", ".join(f"{name} {value(part)}" for name, part in quality.parts.items())


def change(quality: AnyQuality) -> str:
    """Returns the change since the teacher without its unit, or a dash without a teacher."""
    found = quality.headline.change
    return wording.ABSENT if found is None else metric_of(quality).show_change(found)


def change_range(quality: AnyQuality) -> str:
    """Returns the paired interval of the change, or nothing where there is none."""
    interval = quality.headline.change_interval
    return "" if interval is None else metric_of(quality).show_changes(interval)


def change_with_range(quality: AnyQuality, unit: str = "") -> str:
    """Returns the change, the unit if given, and the interval in brackets; a dash without a teacher."""
    if quality.headline.change is None:
        return wording.ABSENT
    interval = change_range(quality)
    return f"{change(quality)}{unit}" + (f" ({interval})" if interval else "")


def change_in_words(quality: AnyQuality) -> str:
    """Returns the change with its unit: `-0.6 points (-1.2 to +0.1)`, `1.42 times the teacher's (1.38 to 1.46)`."""
    return change_with_range(quality, metric_of(quality).change_unit)


def divergence(quality: AnyQuality) -> str:
    """Returns the distance from the teacher in nats, or a dash where there is none."""
    found = quality.headline.divergence
    return wording.ABSENT if found is None else wording.number(found)


def agreement(quality: AnyQuality) -> str:
    """Returns how often model and teacher choose alike, or a dash without a teacher."""
    return wording.ABSENT if quality.teacher_agreement is None else wording.percent(quality.teacher_agreement)


def evidence(quality: AnyQuality) -> str:
    """Returns what was evaluated, for example `962 test rows`."""
    found = quality.headline
    return f"{found.amount:,} {quality.split} {found.unit}"


def as_classifier(quality: AnyQuality | None) -> Quality | None:
    """Returns a classifier's quality, with labels and recall; None for anything else."""
    return quality if isinstance(quality, Quality) else None


def answers(quality: AnyQuality) -> str:
    """Returns how many questions were answered rightly, against blind guesses and the teacher; empty without any."""
    found = quality.multiple_choice if isinstance(quality, LanguageQuality) else None
    if found is None:
        return ""
    teacher = "" if found.teacher_accuracy is None else f", the teacher {wording.percent(found.teacher_accuracy)}"
    return (
        f"{wording.percent(found.accuracy)} ({wording.percent_range(found.accuracy_interval)}) of {found.questions:,} "
        f"questions answered rightly, guesses {wording.percent(found.chance)}{teacher}"
    )


def answered(quality: AnyQuality) -> str:
    """Returns how many prompts got an answer, and what answers are like; empty where none were asked."""
    found = quality.answers if isinstance(quality, LanguageQuality) else None
    if found is None:
        return ""
    if not found.answered:
        return f"no answer to any of {found.prompts} prompts"
    count = f"{found.prompts * found.answered:.0f} of {found.prompts} prompts answered"
    return (
        f"{count}, {wording.percent(found.ended)} ended "
        f"within {found.max_tokens} tokens, {wording.percent(found.repetition)} of 4-grams repeated"
    )


def details(quality: AnyQuality) -> list[tuple[str, str]]:
    """Returns everything that an evaluation found, each with its title."""
    metric = metric_of(quality)
    rows = [(f"{metric.name} (95 %)", value_with_range(quality))]
    rows += [(f"{metric.name} on {name}", value_with_range(part)) for name, part in quality.parts.items()]
    rows.append(("cross-entropy", f"{quality.cross_entropy:.4f} nats"))
    rows.append((quality.headline.unit, f"{quality.headline.amount:,}"))
    if isinstance(quality, LanguageQuality):
        rows.append(("texts", f"{quality.documents:,}"))
        rows.append(("likeliest token is the text's", wording.percent(quality.accuracy)))
        if answers(quality):
            rows.append(("multiple choice", answers(quality)))
        if answered(quality):
            rows.append(("conversation", answered(quality)))
    if quality.headline.change is not None:
        rows.append(("change against the teacher", change_in_words(quality)))
    if isinstance(quality, LanguageQuality) and quality.divergence is not None:
        tail = "" if quality.divergence_p99 is None else f", p99 {wording.number(quality.divergence_p99)}"
        rows.append(("KL from the teacher", f"{wording.number(quality.divergence)} nats a token{tail}"))
    if quality.teacher_agreement is not None:
        rows.append((metric.agreement_title, wording.percent(quality.teacher_agreement)))
    if isinstance(quality, Quality):
        rows += [(f"recall of {label}", wording.percent(found)) for label, found in quality.per_label_recall.items()]
    return rows
