"""`MODEL_CARD.md`: what the model is, what made it, how good and how fast it is, and what nobody knows about it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import JsonValue

from edgekit.artifact import Ancestor
from edgekit.packaging.evidence import flat, measurements_text, mebibytes, quality_text
from edgekit.packaging.manifest import Manifest
from edgekit.packaging.platforms import platform_of

CARD_FILE = "MODEL_CARD.md"
_TRAINED_BY = ("finetune", "distill")
_HUB_TASKS = {"causal-lm": "text-generation"}
"""What model hubs call a task, where it is not edgekit's name."""


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
        f"# {flat(manifest.name)} for {manifest.target.name}{'' if manifest.unverified is None else ' (UNVERIFIED)'}",
        *_unverified(manifest),
        _what(manifest, texts),
        f"## How to use it\n\n{platform_of(manifest).instructions(manifest)}",
        f"## Quality\n\n{quality_text(manifest.facts.quality)}",
        f"## Measurements\n\n{measurements_text(manifest)}",
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
    task = _HUB_TASKS.get(manifest.task, manifest.task)
    lines = [f"license: {json.dumps(texts.license)}"] if texts.license else []
    tags = ["edgekit", manifest.format, manifest.target.name, *(["unverified"] if manifest.unverified else [])]
    lines += [
        f"pipeline_tag: {task}",
        f"library_name: {manifest.versions.runtime}",
        f"tags: {json.dumps(tags)}",
    ]
    quality = manifest.facts.quality
    if quality is not None:
        lines += [
            "model-index:",
            f"- name: {json.dumps(manifest.name)}",
            "  results:",
            f"  - task: {{type: {task}}}",
            f"    dataset: {{name: {json.dumps(manifest.name + ' ' + quality.split)}, type: unknown}}",
            f"    metrics: [{{type: {quality.headline.metric}, value: {quality.headline.value:.4f}}}]",
        ]
    return "\n".join(["---", *lines, "---"])


def _unverified(manifest: Manifest) -> list[str]:
    """Returns the warning of a file that nobody has run."""
    if manifest.unverified is None:
        return []
    return [f"**UNVERIFIED: nobody has run this file.** {flat(manifest.unverified)}"]


def _what(manifest: Manifest, texts: CardTexts) -> str:
    paragraph = f"{flat(texts.description)}\n\n" if texts.description else ""
    return (
        f"{paragraph}{_purpose(manifest)} The file is {manifest.format.upper()}, for "
        f"{flat(manifest.target.description)} ({manifest.target.architecture}), and needs {manifest.versions.runtime} "
        f"{manifest.versions.runtime_minimum} or newer{_ceilings(manifest)}. The whole bundle is "
        f"{mebibytes(manifest.total_bytes)}; `manifest.json` lists every file with its SHA-256."
    )


def _ceilings(manifest: Manifest) -> str:
    """Returns what the reader of an ONNX file must know."""
    versions = manifest.versions
    if versions.opset is None:
        return ""
    return f" (operator set {versions.opset}, IR version {versions.ir_version})"


def _purpose(manifest: Manifest) -> str:
    """Returns what the model does with a text, and how much of one it reads."""
    if not manifest.labels:
        return (
            "A language model that goes on writing a text. Text and answer together have up to "
            f"{manifest.max_length:,} tokens."
        )
    labels = ", ".join(f"`{flat(label)}`" for label in manifest.labels)
    return (
        f"A {manifest.task.replace('-', ' ')} model that gives each text one of {labels}. It reads up to "
        f"{manifest.max_length} tokens; longer texts are cut."
    )


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
    return f"`{flat(text)}`" if told else ""


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
        "not calibrated probabilities."
        if manifest.labels
        else "It writes what is likely after its prompt, which may be false, biased or harmful; nothing filters it.",
        "No test for unfair treatment of groups was made.",
    ]
    if not manifest.facts.measured_on_target:
        limits.append(f"Latency and memory were not measured on a {manifest.target.name}: measure before you promise.")
    return "\n".join(f"- {limit}" for limit in limits)


def _licence(made: Ancestor, texts: CardTexts) -> str:
    source = lineage_steps(made)[0].lineage.config.get("source")
    origin = f" They come from `{flat(str(source))}`, whose licence holds for them too." if source else ""
    if texts.license:
        return f"The licence of the weights: {texts.license}.{origin}"
    missing = "The licence of the weights is not stated: find it out, and write it here and as `license:` at the top"
    return f"{missing}, before you publish this.{origin}"
