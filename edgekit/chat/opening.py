"""Opens an artifact to talk with: model, tokenizer and the tokens that end an answer."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.chat.conversation import Conversation, ConversationConfig
from edgekit.errors import EnvironmentLacksError, UsageError
from edgekit.extras import install_command
from edgekit.models.end_tokens import end_token_ids
from edgekit.models.tasks import read_task
from edgekit.runtimes.generation import GenerationConfig, GenerationSession, generation_runtime_for

_USUAL_CONTEXT = 4096


@dataclass(frozen=True)
class Opened:
    """A model that is ready to answer."""

    conversation: Conversation
    session: GenerationSession
    runtime: str
    """Name and version."""


def open_conversation(
    model: Artifact,
    config: ConversationConfig,
    *,
    runtime: str | None = None,
    threads: int = 1,
    context_length: int | None = None,
) -> Opened:
    """Returns a conversation with a language model; by default there is room for its context, or 4096 tokens of it.

    Raises:
        UsageError: no language model, no runtime that opens it, or a longer context than it has.
        ModelError: the runtime cannot open it, or its tokenizer is missing.
        EnvironmentLacksError: a package is missing.
    """
    from importlib.util import find_spec

    task = read_task(model)
    if task.kind != "causal-lm":
        raise UsageError(f"{model.path}: found a model for the task '{task.kind}', expected a language model.")
    if find_spec("transformers") is None:
        raise EnvironmentLacksError(
            "the package 'transformers' is not installed, which writes chat templates. Install it: "
            f"{install_command('train')}"
        )
    from edgekit.models.tokenizer import load_tokenizer

    chosen = generation_runtime_for(model, runtime)
    tokenizer = load_tokenizer(model.path)
    room = context_length or min(task.max_length, _USUAL_CONTEXT)
    session = chosen.open(model, GenerationConfig(threads=threads, context_length=room))
    ends = end_token_ids(model.path, tokenizer.eos_token_id)
    return Opened(Conversation(session, tokenizer, ends, config), session, f"{chosen.name} {chosen.version()}")
