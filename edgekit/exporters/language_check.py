"""What the stage `check` does for language models: an export in every way that its runtime is driven, against torch.

Torch runs the very codes that were exported, token by token on real text; then both write on from the beginnings of
the texts, each fed its own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import ModelError, UsageError
from edgekit.events import track
from edgekit.exporters.description import read_description
from edgekit.exporters.generation_parity import GreedyRuns, TokenDifferences, common_prefix, write_greedily
from edgekit.exporters.language_limits import EXACT, ROUNDED, OwnRounding, broken
from edgekit.exporters.lowering_names import takes_floats
from edgekit.exporters.parity import TokenizerCheck
from edgekit.exporters.reference import rounds_activations
from edgekit.results import LanguageParity
from edgekit.runtimes.generation import (
    GenerationConfig,
    GenerationRuntime,
    GenerationSession,
    Templated,
    Templating,
    Tokenizing,
    generation_runtime_for,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from edgekit.exporters.check_stage import CheckConfig
    from edgekit.results.parity import Driving

# Libraries in C end a text here.
_END = "\0"
_TEMPLATED = 16
_SHOWN = 40


@dataclass(frozen=True)
class _Texts:
    """What is compared."""

    documents: list[list[int]]
    prompts: list[list[int]]
    tokens: TokenizerCheck


def check_language_model(
    inputs: StageInputs, config: CheckConfig, context: StageContext, texts: list[str], tokens: TokenizerCheck
) -> LanguageParity:
    """Returns the result for the way of driving that is farthest from torch, with the failures of all ways.

    Raises:
        ModelError: the runtime cannot open the export, or the model cannot be read.
        UsageError: no runtime generates with the export.
    """
    model, reference = inputs.require("model", "check"), inputs.require("reference", "check")
    runtime = generation_runtime_for(model, config.runtime)
    network, original = _open_reference(reference, model)
    given = _encode(model, config, texts[: config.documents], tokens, original.context_length)
    expected = _Expected(original, given, config)
    own = expected.rounded(network) if model.kind == "gguf" else None
    limits, own_figures = _limits(config, model, reference, own), own.figures() if own is not None else {}
    found: list[LanguageParity] = []
    for driving, shared in _ways(runtime):
        session = runtime.open(model, GenerationConfig(shared_cache=shared))
        parity = expected.compare(session, context, f"{runtime.name} {runtime.version()}", driving, limits)
        parity = _with_own_text(parity, session, reference, texts)
        session.close()
        found.append(parity.model_copy(update={"model_digest": model.digest, **own_figures}))
    worst = max(found, key=lambda parity: (not parity.passed, parity.divergence))
    failures = [f"{each.driving}: {failure}" for each in found for failure in each.failures]
    of_text = [f"{each.driving}: {failure}" for each in found for failure in each.text_failures]
    return worst.model_copy(update={"failures": failures, "text_failures": of_text, "passed": not failures})


class _Expected:
    """Torch's side, computed once for all ways of driving."""

    def __init__(self, session: GenerationSession, given: _Texts, config: CheckConfig) -> None:
        self._session = session
        self._given = given
        self._length = config.greedy_tokens
        self._written = [write_greedily(session, prompt, self._length) for prompt in given.prompts]

    def rounded(self, network: nn.Module) -> OwnRounding:
        """Returns how far torch's logits move when the inputs of coded linears are rounded in blocks."""
        from edgekit.exporters.block_rounding import rounding_in_blocks

        differences = TokenDifferences()
        for ids in self._given.documents:
            array = np.array(ids, dtype=np.int64)
            self._session.reset()
            exact = self._session.logits(array)
            self._session.reset()
            with rounding_in_blocks(network):
                differences.add(exact, self._session.logits(array))
        return OwnRounding(differences.divergence, differences.divergence_p99, differences.agreement)

    def compare(
        self,
        session: GenerationSession,
        context: StageContext,
        runtime: str,
        driving: Driving,
        limits: dict[str, float],
    ) -> LanguageParity:
        """Returns how far `session` is from torch."""
        differences, runs, given = TokenDifferences(), GreedyRuns(self._length), self._given
        steps = track(
            given.documents, context.events, stage="check", text=driving, total=len(given.documents), unit="texts"
        )
        for ids in steps:
            self._session.reset()
            session.reset()
            array = np.array(ids, dtype=np.int64)
            # Half of a text at once and the rest token by token, as an app does with prompt and answer.
            differences.add(self._session.logits(array), _half_stepped(session, array))
        for prompt, written in zip(given.prompts, self._written, strict=True):
            runs.equal.append(common_prefix(written, write_greedily(session, prompt, self._length)))
        measured = {
            "max_abs_diff": differences.largest,
            "mean_abs_diff": differences.mean,
            "divergence": differences.divergence,
            "divergence_p99": differences.divergence_p99,
            "top1_agreement": differences.agreement,
            "greedy_equal_share": runs.share_equal,
        }
        failures = broken(measured, limits)
        if given.tokens.mismatches:
            failures.append(
                f"{len(given.tokens.mismatches)} of {given.tokens.texts} texts are tokenized otherwise than by "
                "transformers."
            )
        return LanguageParity(
            runtime=runtime,
            driving=driving,
            documents=len(given.documents),
            tokens=differences.tokens,
            greedy_prompts=len(given.prompts),
            greedy_tokens=self._length,
            greedy_equal_tokens=runs.mean_equal,
            tokenizer_mismatches=len(given.tokens.mismatches),
            tokenizer_texts=given.tokens.texts,
            template_mismatches=0,
            template_texts=0,
            passed=not failures,
            failures=failures,
            **{
                name: value if np.isfinite(value) else float(np.finfo(np.float64).max)
                for name, value in measured.items()
            },
        )


def _with_own_text(
    parity: LanguageParity, session: GenerationSession, reference: Artifact, texts: list[str]
) -> LanguageParity:
    """Returns `parity` with what the runtime's own tokenizer and template make of hard texts, where it has them."""
    from edgekit.models.tokenizer import NASTY_TEXTS, load_tokenizer

    tokenizer = load_tokenizer(reference.path)
    changes: dict[str, Any] = {}
    failures: list[str] = []
    if isinstance(session, Tokenizing):
        given = [text for text in [*NASTY_TEXTS, *texts] if text and _END not in text]
        wrong = [text for text in given if session.tokenize(text) != list(tokenizer(text)["input_ids"])]
        changes |= {"tokenizer_mismatches": len(wrong), "tokenizer_texts": len(given)}
        if wrong:
            failures.append(
                f"{len(wrong)} of {len(given)} texts are tokenized otherwise by {parity.runtime}, first "
                f"{wrong[0][:_SHOWN]!r}."
            )
    if isinstance(session, Templating) and tokenizer.chat_template:
        conversations = [_conversation(text) for text in [*NASTY_TEXTS[:_TEMPLATED], *texts] if _END not in text]
        wrong = [
            talk[1]["content"] for talk in conversations if _own_rendering(session, talk) != _rendered(tokenizer, talk)
        ]
        changes |= {"template_mismatches": len(wrong), "template_texts": len(conversations)}
        if wrong:
            failures.append(
                f"{len(wrong)} of {len(conversations)} conversations are rendered otherwise by {parity.runtime}, first "
                f"{wrong[0][:_SHOWN]!r}."
            )
    elif isinstance(session, Templated) and tokenizer.chat_template:
        same = session.chat_template() == tokenizer.chat_template
        changes |= {"template_mismatches": int(not same), "template_texts": 1}
        if not same:
            failures.append(f"The chat template in the file that {parity.runtime} reads is not the tokenizer's.")
    found = [*parity.failures, *failures]
    return parity.model_copy(update={**changes, "failures": found, "text_failures": failures, "passed": not found})


def _conversation(text: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": text},
        {"role": "user", "content": text},
    ]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str | None:
    """Returns a conversation as transformers writes it; None where the template refuses it."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError:
        return None


def _own_rendering(session: Templating, messages: list[dict[str, str]]) -> str | None:
    """Returns a conversation as the runtime writes it; None where it refuses it."""
    try:
        return session.render(messages)
    except UsageError:
        return None


def _half_stepped(session: GenerationSession, ids: np.ndarray) -> np.ndarray:
    """Returns the logits of each token, (T, V)."""
    half = max(1, len(ids) // 2)
    rows = [session.logits(ids[:half])]
    rows += [session.step(int(token))[None] for token in ids[half:]]
    return np.concatenate(rows)


def _ways(runtime: GenerationRuntime) -> list[tuple[Driving, bool]]:
    """Returns the ways in which a runtime is driven, each with what `shared_cache` says."""
    if runtime.name == "onnxruntime":
        return [("exact-past", False), ("shared-buffer", True)]
    return [("engine", True)]


def _open_reference(reference: Artifact, export: Artifact) -> tuple[nn.Module, GenerationSession]:
    """Returns torch running what the export should compute; for llama.cpp, which rounds in its own way, unrounded."""
    from edgekit.exporters.block_rounding import multiply_floats
    from edgekit.exporters.precision import apply_precision
    from edgekit.models.source import load_model
    from edgekit.runtimes.torch_generation import TorchGenerationSession

    loaded = load_model(reference)
    description = read_description(export.path)
    apply_precision(loaded.model, description.precision)
    multiply_floats(loaded.model, None if export.kind == "gguf" else takes_floats(description.lowerings))
    return loaded.model, TorchGenerationSession(loaded.model, loaded.task.max_length)


def _encode(
    model: Artifact, config: CheckConfig, texts: list[str], tokens: TokenizerCheck, context_length: int
) -> _Texts:
    """Returns tokens of the texts and of their beginnings, none longer than the context."""
    from edgekit.data.preprocessing import encode
    from edgekit.models.tokenizer import TOKENIZER_FILE, load_bare_tokenizer

    longest = min(config.max_tokens, context_length)
    tokenizer = load_bare_tokenizer(model.path / TOKENIZER_FILE)
    documents = [ids for ids in encode(texts, tokenizer, longest, allow_empty=True) if ids]
    if not documents:
        raise ModelError(f"{model.path}: the tokenizer gives no token for any of {len(texts)} texts.")
    room = max(1, context_length - config.greedy_tokens)
    prompts = [ids[: min(len(ids) // 2 + 1, room)] for ids in documents[: config.greedy_prompts]]
    return _Texts(documents, prompts, tokens)


def _limits(config: CheckConfig, model: Artifact, reference: Artifact, own: OwnRounding | None) -> dict[str, float]:
    """Returns what must hold: as configured, else as the kind of rounding asks for."""
    rounded = ROUNDED if rounds_activations(reference, model) else EXACT
    default = rounded if own is None else own.limits()
    given = {name: getattr(config, name) for name in default}
    return {name: default[name] if value is None else value for name, value in given.items()}
