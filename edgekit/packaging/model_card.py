"""`MODEL_CARD.md`: what the model is, what made it, how good and how fast it is, and what nobody knows about it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import JsonValue

from edgekit.artifact import Ancestor
from edgekit.packaging.manifest import Manifest
from edgekit.packaging.platforms import platform_of
from edgekit.results import BudgetCheck, Estimate, Interval, Measurement, Quality

CARD_FILE = "MODEL_CARD.md"
_TRAINED_BY = ("finetune", "distill")


@dataclass(frozen=True)
class CardTexts:
    """What a person says about the model; the rest of the card is found out."""

    description: str = ""
    """One paragraph: what it is for."""
    license: str = ""
    """SPDX identifier of the weights' licence."""


def render_card(manifest: Manifest, texts: CardTexts) -> str:
    """Returns the card, with the front matter that model hubs read."""
    parts = [
        _front_matter(manifest, texts),
        f"# {_flat(manifest.name)} for {manifest.target.name}",
        _what(manifest, texts),
        f"## How to use it\n\n{platform_of(manifest).instructions(manifest)}",
        f"## Quality\n\n{_quality(manifest.facts.quality)}",
        f"## Measurements\n\n{_measurements(manifest)}",
        f"## How it was made\n\n{_lineage(manifest.lineage)}",
        f"## Data\n\n{_data(manifest.lineage)}",
        f"## Limits\n\n{_limits(manifest)}",
        f"## Licence\n\n{_licence(manifest.lineage, texts)}",
    ]
    return "\n\n".join(parts) + "\n"


def lineage_steps(made: Ancestor) -> list[Ancestor]:
    """Returns the artifacts along the model's line, the source first."""
    steps = [made]
    while (parent := _parent(steps[-1])) is not None:
        steps.append(parent)
    return steps[::-1]


def _parent(step: Ancestor) -> Ancestor | None:
    return step.lineage.inputs.get("model")


def _front_matter(manifest: Manifest, texts: CardTexts) -> str:
    """Returns YAML; every value is JSON, which YAML reads."""
    lines = [f"license: {json.dumps(texts.license or 'unknown')}", f"pipeline_tag: {manifest.task}"]
    lines += ["library_name: onnxruntime", f"tags: {json.dumps(['edgekit', manifest.format, manifest.target.name])}"]
    quality = manifest.facts.quality
    if quality is not None:
        lines += [
            "model-index:",
            f"- name: {json.dumps(manifest.name)}",
            "  results:",
            f"  - task: {{type: {manifest.task}}}",
            f"    dataset: {{name: {json.dumps(manifest.name + ' ' + quality.split)}, type: unknown}}",
            f"    metrics: [{{type: accuracy, value: {quality.accuracy:.4f}}}]",
        ]
    return "\n".join(["---", *lines, "---"])


def _what(manifest: Manifest, texts: CardTexts) -> str:
    labels = ", ".join(f"`{_flat(label)}`" for label in manifest.labels)
    paragraph = f"{_flat(texts.description)}\n\n" if texts.description else ""
    return (
        f"{paragraph}A {manifest.task.replace('-', ' ')} model that gives each text one of {labels}. It reads up to "
        f"{manifest.max_length} tokens; longer texts are cut. The file is {manifest.format.upper()}, for "
        f"{_flat(manifest.target.description)} ({manifest.target.architecture}), and needs {manifest.versions.runtime} "
        f"{manifest.versions.runtime_minimum} or newer (operator set {manifest.versions.opset}, IR version "
        f"{manifest.versions.ir_version}). The whole bundle is {_mebibytes(manifest.total_bytes)}; `manifest.json` "
        "lists every file with its SHA-256."
    )


def _quality(quality: Quality | None) -> str:
    if quality is None:
        return "Not measured on the exported file."
    lines = [
        f"The exported file itself, run by its runtime on {quality.rows:,} rows of `{quality.split}`:",
        "",
        "| | value | 95 % interval |",
        "| --- | ---: | ---: |",
        _row("accuracy", quality.accuracy, quality.accuracy_interval),
        *(_row(f"accuracy on `{name}`", part.accuracy, part.accuracy_interval) for name, part in quality.parts.items()),
    ]
    for label, recall in quality.per_label_recall.items():
        interval = quality.per_label_recall_intervals.get(label)
        lines.append(_row(f"recall of `{_flat(label)}`", recall, interval))
    lines.append(f"| cross-entropy | {quality.cross_entropy:.4f} nats | |")
    if quality.accuracy_change is not None:
        interval = quality.accuracy_change_interval
        spread = "" if interval is None else f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
        lines.append(f"| change since the teacher | {100 * quality.accuracy_change:+.1f} points | {spread} |")
    if quality.teacher_agreement is not None:
        lines.append(f"| same label as the teacher | {_percent(quality.teacher_agreement)} | |")
    return "\n".join(lines)


def _row(name: str, share: float, interval: Interval | None) -> str:
    spread = "" if interval is None else f"{_percent(interval.low)} to {_percent(interval.high)}"
    return f"| {name} | {_percent(share)} | {spread} |"


def _measurements(manifest: Manifest) -> str:
    """Returns parity, measurements with their machine, the budget, and, apart from them, the estimates."""
    facts = manifest.facts
    parts = []
    if facts.parity is not None:
        parity = facts.parity
        parts.append(
            f"Against torch, under {parity.runtime}, on {parity.rows:,} texts: the largest difference of a logit is "
            f"{parity.max_abs_diff:.2g}, the mean {parity.mean_abs_diff:.2g}, and "
            f"{_percent(parity.label_agreement)} of the labels agree. {parity.tokenizer_mismatches} of "
            f"{parity.tokenizer_texts} texts are tokenized otherwise."
        )
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
    parts += [f"Note: {_flat(note)}" for note in facts.notes]
    return "\n\n".join(parts) or "None."


def _measured(found: Measurement, manifest: Manifest) -> str:
    machine = found.machine
    target = manifest.target.name
    where = "" if manifest.facts.measured_on_target else f" These are that machine's figures, not a {target}'s."
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return (
        f"Measured on {_flat(machine.cpu)} ({machine.architecture}, {machine.cores} cores, {machine.operating_system})."
        f"{where} {found.runtime} {found.runtime_version}, {threads}, {found.batch} x {found.length} "
        f"tokens, {len(found.samples_ms):,} samples in a fresh process:\n\n"
        "| | value | 95 % interval |\n| --- | ---: | ---: |\n"
        f"| p50 | {found.p50_ms:.3g} ms | {found.p50_interval_ms.low:.3g} to {found.p50_interval_ms.high:.3g} |\n"
        f"| p95 | {found.p95_ms:.3g} ms | {found.p95_interval_ms.low:.3g} to {found.p95_interval_ms.high:.3g} |\n"
        f"| peak memory of the process | {_mebibytes(found.peak_rss_bytes)} | |\n"
        f"| model files | {_mebibytes(found.model_bytes)} | |"
    )


def _estimated(estimate: Estimate, target: str) -> str:
    holds = "; ".join(_flat(assumption) for assumption in estimate.assumptions)
    quantity = estimate.quantity if target in estimate.quantity else f"{estimate.quantity} on {target}"
    return (
        f"> **Estimate, not measured**: {_flat(quantity)} ~ {estimate.low:.3g} to "
        f"{estimate.high:.3g} {estimate.unit}, from `{_flat(estimate.formula)}`. It holds only if: {holds}."
    )


def _check_row(check: BudgetCheck) -> str:
    return f"| {check.name} | {check.status} | {_flat(check.explanation)} |"


def _lineage(made: Ancestor) -> str:
    """Returns one row a step, from the source to the export."""
    rows = ["| step | artifact | seed | edgekit | configuration |", "| --- | --- | ---: | --- | --- |"]
    for step in lineage_steps(made):
        lineage = step.lineage
        rows.append(
            f"| {lineage.stage} | `{step.digest[:12]}` | {lineage.seed} | {lineage.edgekit_version} | "
            f"{_settings(lineage.config)} |"
        )
    return "\n".join(rows)


def _settings(config: dict[str, JsonValue]) -> str:
    told = {key: value for key, value in config.items() if value not in (None, [], {}, "")}
    text = json.dumps(told, ensure_ascii=False, sort_keys=True)
    return f"`{_flat(text)}`" if told else ""


def _data(made: Ancestor) -> str:
    """Returns the configuration of the data that each training step read."""
    lines: dict[str, None] = {}
    for step in lineage_steps(made):
        data = step.lineage.inputs.get("data")
        if step.lineage.stage in _TRAINED_BY and data is not None:
            lines[f"- `{data.digest[:12]}`: {_settings(data.lineage.config) or 'made outside edgekit'}"] = None
    return "\n".join(["The model was trained on:", "", *lines]) if lines else "No training step is recorded."


def _limits(manifest: Manifest) -> str:
    """Returns what follows from how it was made and measured."""
    limits = [
        "Quality holds for text like the data above; other domains, languages and times were not measured.",
        f"It always answers with one of {len(manifest.labels)} labels, also for text that fits none; the scores are "
        "not calibrated probabilities.",
        "No test for unfair treatment of groups was made.",
    ]
    if not manifest.facts.measured_on_target:
        limits.append(f"Latency and memory were not measured on a {manifest.target.name}: measure before you promise.")
    return "\n".join(f"- {limit}" for limit in limits)


def _licence(made: Ancestor, texts: CardTexts) -> str:
    source = lineage_steps(made)[0].lineage.config.get("source")
    origin = f" They come from `{_flat(str(source))}`, whose licence holds for them too." if source else ""
    return f"The licence of the weights: {texts.license or 'not stated'}.{origin}"


def _flat(text: str) -> str:
    """Returns text on one line that neither ends a table cell nor opens a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
