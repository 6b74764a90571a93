"""A language model's bundle: its manifest, the files that it has of its own, how it is opened and verified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact
from edgekit.errors import CorruptArtifactError, ModelError
from edgekit.models.tasks import read_task
from edgekit.models.tokenizer import NASTY_TEXTS, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from edgekit.packaging.chat_template import render_chat, tells_time
from edgekit.packaging.config import PackageConfig
from edgekit.packaging.language_usage import usage_files
from edgekit.packaging.manifest import (
    Manifest,
    SessionSettings,
    Versions,
    WritingSettings,
    read_versions,
    summarize,
)
from edgekit.runtimes.onnxruntime_runtime import SESSION_SETTINGS
from edgekit.runtimes.protocol import model_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edgekit.runtimes.generation import GenerationConfig, GenerationSession

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_VECTORS_FILE = "template_vectors.json"
_GENERATION_FILE = "generation_config.json"
_EXPORT_FILE = "export.json"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_TRIED = 4
_TEMPLATED = 8


@dataclass(frozen=True)
class LanguageBundle:
    """A bundle, its digests verified. It is what a runtime opens, and it knows how its model is spoken to."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        """The kind of artifact that a runtime sees: an export's files, unchanged."""
        return self.manifest.format

    @property
    def ends(self) -> list[int]:
        """Tokens at which an answer ends."""
        return list(self._writing.ends)

    def open(self, config: GenerationConfig, runtime: str | None = None) -> GenerationSession:
        """Returns a session under `runtime`, by default the one that ships the bundle.

        Raises:
            ModelError: the runtime cannot open the model.
            UsageError: the runtime is unknown or opens other formats.
            EnvironmentLacksError: it is not installed.
        """
        from edgekit.runtimes.generation import generation_runtime_for

        chosen = runtime or self.manifest.versions.runtime
        return generation_runtime_for(self, chosen).open(self, config)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Returns a conversation (`role`, `content`) as tokens, ready for an answer.

        A model without a chat template gets the last turn's text as it is.

        Raises:
            UsageError: the template refuses the conversation.
        """
        from edgekit.models.tokenizer import load_bare_tokenizer

        tokenizer = load_bare_tokenizer(self.path / self.manifest.tokenizer)
        if self._writing.chat_template is None:
            return list(tokenizer.encode(messages[-1]["content"]).ids)
        template = (self.path / self._writing.chat_template).read_text(encoding="utf-8")
        rendered = render_chat(template, messages, self._writing.special_tokens)
        return list(tokenizer.encode(rendered, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text that tokens stand for, without special ones."""
        from edgekit.models.tokenizer import load_bare_tokenizer

        return str(load_bare_tokenizer(self.path / self.manifest.tokenizer).decode(list(ids)))

    @property
    def _writing(self) -> WritingSettings:
        if self.manifest.writing is None:
            raise CorruptArtifactError(f"{self.path}: its manifest lacks 'writing'. Build the bundle again.")
        return self.manifest.writing


def describe_language(model: Artifact, config: PackageConfig) -> Manifest:
    """Returns the manifest of an export, still without files.

    Raises:
        UnsupportedError: the target's runtime does not read the file.
        TargetError: the target does not ship the runtime that the file was checked with.
    """
    task = read_task(model)
    name, *_ = checked = config.checked_with()
    shipped = config.target.runtime(name)
    described = _read_json(model.path / _EXPORT_FILE)
    is_onnx = model.kind == "onnx"
    runtimes = [config.target.runtime(runtime) for runtime in checked]
    versions = Versions(runtime=name, runtime_minimum=shipped.version)
    if is_onnx:
        versions, *_ = (read_versions(model, config.target, runtime) for runtime in runtimes)
    return Manifest(
        name=config.name,
        target=summarize(config.target),
        format=model.kind,
        task=task.kind,
        labels=[],
        max_length=min(task.max_length, described.get("context_length", task.max_length)),
        pad_id=int(_read_json(model.path / "config.json").get("pad_token_id") or 0),
        model=model_file(model).relative_to(model.path).as_posix(),
        tokenizer=TOKENIZER_FILE,
        inputs=[entry["name"] for entry in described.get("inputs", [])],
        outputs=[entry["name"] for entry in described.get("outputs", [])],
        session=SessionSettings(threads=shipped.threads, entries=SESSION_SETTINGS if is_onnx else {}),
        writing=_writing(model, {runtime.name: runtime.version for runtime in runtimes}),
        versions=versions,
        facts=config.facts,
        lineage=model.as_ancestor(),
        files={},
        total_bytes=0,
    )


def language_files(staging: Path, manifest: Manifest) -> dict[str, str]:
    """Returns name to content of the files that a language model's bundle has of its own.

    Raises:
        ModelError: the chat template fails on every conversation.
    """
    from edgekit.models.tokenizer import load_tokenizer

    files = usage_files(manifest)
    tokenizer = load_tokenizer(staging)
    template = tokenizer.chat_template
    if manifest.writing is not None and manifest.writing.chat_template and not tells_time(str(template)):
        files[TEMPLATE_VECTORS_FILE] = json.dumps(_template_vectors(tokenizer), indent=1) + "\n"
    return files


def _template_vectors(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Returns conversations with the text that the template makes of them, without those that it refuses."""
    from jinja2 import TemplateError

    vectors: list[dict[str, Any]] = []
    reason = ""
    for messages in _conversations():
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            reason = str(error)
        else:
            vectors.append({"messages": messages, "text": text})
    if not vectors:
        raise ModelError(
            f"package: the chat template fails on every conversation ({reason}), expected a question to work. Correct "
            "it in the model's source, and import the model again."
        )
    return vectors


def check_language(bundle: LanguageBundle) -> list[str]:
    """Checks that the template writes every conversation as recorded and that the model runs; returns what it checked.

    Raises:
        CorruptArtifactError: naming the file, and what differs.
        EnvironmentLacksError: the runtime is not installed.
    """
    import numpy as np

    from edgekit.runtimes.generation import GenerationConfig

    manifest = bundle.manifest
    written = _check_template(bundle)
    session = bundle.open(GenerationConfig(threads=1, context_length=min(manifest.max_length, 64)))
    try:
        ids = np.array(bundle.prompt([{"role": "user", "content": "a"}])[-32:], dtype=np.int64)
        logits = [session.prefill(ids)]
        logits += [session.step(int(logits[-1].argmax())) for _ in range(_TRIED)]
    finally:
        session.close()
    if not all(bool(np.isfinite(row).all()) for row in logits):
        raise CorruptArtifactError(
            f"{bundle.path / manifest.model}: gives logits that are not finite. Build the bundle again."
        )
    template = [f"the chat template writes {written} conversations as recorded"] if written else []
    return [*template, f"the model writes {_TRIED} tokens with finite logits"]


def _check_template(bundle: LanguageBundle) -> int:
    """Checks the template, and returns how many conversations it wrote; 0 where none are recorded."""
    file = bundle.path / TEMPLATE_VECTORS_FILE
    writing = bundle.manifest.writing
    if writing is None or writing.chat_template is None or not file.is_file():
        return 0
    template = (bundle.path / writing.chat_template).read_text(encoding="utf-8")
    vectors = json.loads(file.read_text(encoding="utf-8"))
    for vector in vectors:
        if render_chat(template, vector["messages"], writing.special_tokens) != vector["text"]:
            raise CorruptArtifactError(
                f"{bundle.path / writing.chat_template}: writes the conversation "
                f"{vector['messages'][-1]['content'][:40]!r} otherwise than {TEMPLATE_VECTORS_FILE} says. An app with "
                "jinja2 alone would ask another question than the model was checked with."
            )
    return len(vectors)


def _writing(model: Artifact, promised: dict[str, str]) -> WritingSettings:
    settings = _read_json(model.path / TOKENIZER_CONFIG_FILE)
    given = {name: settings.get(name) for name in _SPECIAL_TOKENS}
    tokens = {name: value["content"] if isinstance(value, dict) else value for name, value in given.items() if value}
    generation = _read_json(model.path / _GENERATION_FILE) if (model.path / _GENERATION_FILE).is_file() else {}
    ends = generation.get("eos_token_id", _read_json(model.path / "config.json").get("eos_token_id"))
    return WritingSettings(
        ends=[] if ends is None else [int(end) for end in (ends if isinstance(ends, list) else [ends])],
        special_tokens=tokens,
        chat_template=TEMPLATE_FILE if (model.path / TEMPLATE_FILE).is_file() else None,
        runtimes=promised,
    )


def _conversations() -> list[list[dict[str, str]]]:
    texts = [text for text in NASTY_TEXTS if "\0" not in text and len(text) < 200][:_TEMPLATED]
    return [[{"role": "user", "content": text}] for text in texts] + [
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": text},
            {"role": "user", "content": text},
        ]
        for text in texts
    ]


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
