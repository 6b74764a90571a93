"""How an exported file agrees with torch: a parity check as words, for classifiers and language models alike.

The only module of reporting that knows which kind of parity check it has before it.
"""

from __future__ import annotations

from edgekit.reporting import wording
from edgekit.results import AnyParity, CheckStatus, Emulation, LanguageParity, Unverified

METHOD = (
    "The exported file under the runtime that ships, against torch running the same weights, on real text; and the "
    "bundled tokenizer file against transformers."
)
_DRIVINGS = {
    "exact-past": "past keys and values at their exact length",
    "shared-buffer": "one buffer for past and present",
    "engine": "an engine with a cache of its own",
}


def verdict(parity: AnyParity) -> str:
    """Returns `passed`, `failed` or `unverified`."""
    if isinstance(parity, Unverified):
        return "unverified"
    return "passed" if parity.passed else "failed"


def status(parity: AnyParity) -> CheckStatus:
    """Returns the status of a budget check that looks like the verdict."""
    statuses: dict[str, CheckStatus] = {"passed": "met", "failed": "missed", "unverified": "inconclusive"}
    return statuses[verdict(parity)]


def figure(parity: AnyParity) -> str:
    """Returns the largest difference of a logit as a bare number, or a dash where nothing was compared."""
    return wording.ABSENT if isinstance(parity, Unverified) else wording.small(parity.max_abs_diff)


def largest(parity: AnyParity) -> str:
    """Returns the largest difference of a logit, for example `max 2.4e-06`."""
    if isinstance(parity, Unverified):
        return f"{parity.runtime} is not here"
    return f"max {wording.small(parity.max_abs_diff)}"


def same_choice(parity: AnyParity) -> str:
    """Returns how often both choose alike, for example `labels 100.0 %` or `top-1 99.8 %`."""
    if isinstance(parity, Unverified):
        return ""
    if isinstance(parity, LanguageParity):
        return f"top-1 {wording.percent(parity.top1_agreement)}"
    return f"labels {wording.percent(parity.label_agreement)}"


def sentence(parity: AnyParity) -> str:
    """Returns the whole check in a sentence."""
    if isinstance(parity, Unverified):
        return f"Not compared with torch: {parity.reason}"
    differences = (
        f"largest logit difference {wording.small(parity.max_abs_diff)}, mean {wording.small(parity.mean_abs_diff)}"
    )
    tokenizer = f"tokenizer: {parity.tokenizer_mismatches} of {parity.tokenizer_texts} texts differ"
    if not isinstance(parity, LanguageParity):
        labels = f"same label on {wording.percent(parity.label_agreement)}"
        under = f"under {parity.runtime}{_emulated(parity.emulation)}"
        return f"{parity.rows} texts {under} against torch: {differences}, {labels}; {tokenizer}."
    return (
        f"{parity.tokens:,} tokens of {parity.documents:,} texts under {parity.runtime} ({_DRIVINGS[parity.driving]}) "
        f"against torch: {differences}, KL {divergence(parity)}, same likeliest token on "
        f"{wording.percent(parity.top1_agreement)}; {greedy(parity)}{tokenizer}{_template(parity)}."
    )


def rows(parity: AnyParity) -> list[tuple[str, str]]:
    """Returns the figures of a check, each with its title."""
    if isinstance(parity, Unverified):
        return [("not compared", parity.reason)]
    differences = [
        ("largest difference", wording.small(parity.max_abs_diff)),
        ("mean difference", wording.small(parity.mean_abs_diff)),
    ]
    tokenizer = ("tokenizer texts that differ", f"{parity.tokenizer_mismatches} of {parity.tokenizer_texts}")
    if not isinstance(parity, LanguageParity):
        same = ("same label", wording.percent(parity.label_agreement))
        return [*_processor(parity.emulation), ("texts", f"{parity.rows:,}"), *differences, same, tokenizer]
    found = [
        ("driven with", _DRIVINGS[parity.driving]),
        ("texts", f"{parity.documents:,}"),
        ("tokens", f"{parity.tokens:,}"),
        *differences,
        ("KL", divergence(parity)),
        ("same likeliest token", wording.percent(parity.top1_agreement)),
    ]
    if parity.greedy_prompts:
        found.append(("equal greedy text", greedy(parity).removesuffix("; ").removeprefix("greedy text equal for ")))
    found.append(tokenizer)
    if parity.template_texts:
        found.append(("chat templates that differ", f"{parity.template_mismatches} of {parity.template_texts}"))
    return found


def divergence(parity: LanguageParity) -> str:
    """Returns the distance of the two distributions, mean and p99, in nats a token; what rounding alone does beside."""
    own = "" if parity.own_divergence is None else f", torch so rounded {wording.small(parity.own_divergence)}"
    return f"{wording.small(parity.divergence)} nats (p99 {wording.small(parity.divergence_p99)}{own})"


def greedy(parity: LanguageParity) -> str:
    """Returns how long greedy texts are equal, ready to be followed by more; nothing where none was tried."""
    if not parity.greedy_prompts:
        return ""
    return (
        f"greedy text equal for {wording.number(parity.greedy_equal_tokens)} of {parity.greedy_tokens} tokens, whole "
        f"after {wording.percent(parity.greedy_equal_share)} of {parity.greedy_prompts} prompts; "
    )


def _processor(emulation: Emulation | None) -> list[tuple[str, str]]:
    """Returns what an export ran on, where that was emulated."""
    if emulation is None:
        return []
    features = ", ".join(emulation.cpu_features)
    return [
        ("device", f"{emulation.device}, emulated by {emulation.emulator}"),
        ("processor", f"{emulation.cpu}, {emulation.architecture}: {features}"),
    ]


def _emulated(emulation: Emulation | None) -> str:
    return "" if emulation is None else f" on {emulation.cpu}, emulated by {emulation.emulator},"


def _template(parity: LanguageParity) -> str:
    if not parity.template_texts:
        return ""
    return f"; chat template: {parity.template_mismatches} of {parity.template_texts} conversations differ"
