"""What a session that writes text is: tokens in, the logits of the next one out, with a cache of what was said.

How tokens are chosen, and what is done with the time they take, is not known here. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgekit.errors import UsageError
from edgekit.models.tasks import TASK_FILE, read_task_file
from edgekit.runtimes.protocol import ModelOnDisk, SessionConfig, runtime_for

if TYPE_CHECKING:
    from numpy import ndarray


@runtime_checkable
class GenerationSession(Protocol):
    """An open language model with one conversation's cache."""

    @property
    def context_length(self) -> int:
        """Tokens that fit."""

    @property
    def position(self) -> int:
        """Tokens in the cache."""

    def reset(self) -> None:
        """Forgets everything that was said."""

    def prefill(self, ids: Sequence[int]) -> ndarray:
        """Takes the tokens in, after those in the cache, and returns the logits after the last one, float32 (V,).

        Raises:
            UsageError: no token, or more than fit into the context.
        """

    def step(self, token: int) -> ndarray:
        """Takes one token in and returns the logits after it, float32 (V,); raises what `prefill` raises."""

    def logits(self, ids: Sequence[int]) -> ndarray:
        """Takes the tokens in and returns the logits after each, float32 (T, V); raises what `prefill` raises."""


@runtime_checkable
class GenerationRuntime(Protocol):
    """What a `Runtime` that writes text can do besides."""

    def open_generation(self, model: ModelOnDisk, config: SessionConfig) -> GenerationSession:
        """Returns a session that writes with `model`, as long as `task.json` beside it allows.

        Raises:
            ModelError: the runtime cannot open the file.
        """


def open_generation(model: ModelOnDisk, runtime: str | None, config: SessionConfig) -> GenerationSession:
    """Returns a session that writes with `model`, by the runtime of that name or the first that opens such a model.

    Raises:
        UsageError: the model is no language model, or the runtime does not open it or does not write text.
        EnvironmentLacksError: its library is missing.
        ModelError: it cannot open the file.
    """
    kind = read_task_file(model.path / TASK_FILE).kind
    if kind != "causal-lm":
        raise UsageError(f"{model.path}: is a model for the task '{kind}', which cannot write text.")
    chosen = runtime_for(model, runtime)
    if not isinstance(chosen, GenerationRuntime):
        raise UsageError(f"{model.path}: the runtime '{chosen.name}' opens it, but cannot write text.")
    return chosen.open_generation(model, config)


def check_tokens(ids: Sequence[int], position: int, context_length: int) -> None:
    """Checks that there are tokens and that they fit.

    Raises:
        UsageError: no token, or more than fit into the context after `position` others.
    """
    if len(ids) == 0:
        raise UsageError("found no tokens, expected at least one.")
    if position + len(ids) > context_length:
        raise UsageError(
            f"found {position + len(ids)} tokens, the model's context holds {context_length}. Shorten the text, or "
            "reset the session."
        )
