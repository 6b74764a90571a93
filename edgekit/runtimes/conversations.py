"""Several conversations that one session writes at once: a batch of sequences that move on together.

    session = open_conversations(runtime, model, GenerationConfig(threads=2, conversations=4))
    logits = session.take(prompts)                # prompts (4, T) -> (4, V): what may follow each
    logits = session.take(logits.argmax(-1)[:, None])

The first call takes prompts of one length, every later one a token of each conversation. This module imports nothing
heavy: the process that measures memory imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgekit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.generation import GenerationConfig, GenerationRuntime
    from edgekit.runtimes.protocol import ModelOnDisk


@runtime_checkable
class ConversationsSession(Protocol):
    """An open model with the caches of `GenerationConfig.conversations` sequences."""

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes the next tokens of every conversation, (B, T), and returns the last one's logits of each, (B, V).

        T is 1 but for the first call after the opening or a reset: onnxruntime's attention takes no more.

        Raises:
            UsageError: no tokens, or more than fit; the caches are as before.
        """

    def reset(self) -> None:
        """Forgets every token of every conversation."""

    def close(self) -> None:
        """Frees the model and the caches; the session is not used after it."""


def open_conversations(
    runtime: GenerationRuntime, model: ModelOnDisk, config: GenerationConfig
) -> ConversationsSession:
    """Returns a session that writes `config.conversations` at once.

    Raises:
        UnsupportedError: the runtime writes one conversation only.
        ModelError: the runtime cannot open the file.
        UsageError: `config` asks for a longer context than the model has.
    """
    session = runtime.open(model, config)
    if isinstance(session, ConversationsSession):
        return session
    session.close()
    raise UnsupportedError(
        f"runtime '{runtime.name}': found {config.conversations} conversations at once, expected 1, all that its "
        "session holds. Use onnxruntime, llama.cpp or torch."
    )
