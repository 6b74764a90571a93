"""A conversation with an open model: what is asked, what is answered, and how much of it the cache already holds.

    talk = Conversation(session, tokenizer, ends, ConversationConfig(temperature=0.7))
    answer = talk.ask("Hello!", show=print)

Files, terminals and runtimes are not known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from edgekit.chat.sampling import Sampling, choose_token
from edgekit.chat.text_stream import TextStream
from edgekit.contract import StageConfig
from edgekit.data.conversations import render_turns
from edgekit.data.documents import Message
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from edgekit.runtimes.generation import GenerationSession

Ending = Literal["end", "max-tokens", "context-full", "stopped"]
_PLACE = "this conversation"


class ConversationConfig(StageConfig):
    """How a model answers."""

    system: str | None = None
    """What the model is told before the conversation begins."""
    temperature: float = Field(default=0.0, ge=0, le=100)
    """Divides the logits; 0: always the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draws only from the likeliest tokens that together have this probability."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens after which an answer is cut."""
    seed: int = Field(default=0, ge=0)
    """Decides what is drawn."""


@dataclass(frozen=True)
class Answer:
    """What a model said, and how fast."""

    text: str
    """Without special tokens."""
    token_ids: list[int]
    """The tokens written, without the one that ended them."""
    read_tokens: int
    """Tokens that the model took in before it answered."""
    kept_tokens: int
    """Tokens of the conversation that were still in the cache."""
    first_token_s: float
    """Time from the question to the first token."""
    tokens_per_s: float
    """Tokens after the first one, the one that ended the answer included, over their time; 0 for a single one."""
    ending: Ending
    """Why it ended."""


@dataclass(frozen=True)
class _Run:
    """One answer as it was written."""

    chosen: list[int]
    """All tokens; the last one is not in the cache."""
    text: str
    ending: Ending
    first: float
    """When the first token was chosen, s."""
    last: float
    """When the last one was."""


class Conversation:
    """Turns of a user and a model; without a chat template, texts that the model continues, each on its own."""

    def __init__(
        self,
        session: GenerationSession,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        config: ConversationConfig,
    ) -> None:
        """Starts without turns.

        Args:
            session: an open model.
            tokenizer: the model's, with its chat template where it has one.
            ends: tokens that end an answer.
            config: how to answer.

        Raises:
            UsageError: a system text for a model without a chat template.
        """
        self.has_template = bool(tokenizer.chat_template)
        if config.system is not None and not self.has_template:
            raise UsageError("system: the model has no chat template to write it with. Put it before the text.")
        self._session, self._tokenizer, self._ends = session, tokenizer, frozenset(ends)
        self._config, self._sampling = config, Sampling(config.temperature, config.top_p)
        self._random = np.random.default_rng(config.seed)
        self.forget()

    def forget(self) -> None:
        """Begins a new conversation."""
        self._messages = [] if self._config.system is None else [Message("system", self._config.system)]
        self._held = ""
        """The text of the tokens in the cache, and of those that wait."""
        self._waiting: list[int] = []
        """Tokens of that text that the model has not taken in yet."""

    def ask(
        self,
        text: str,
        show: Callable[[str], object] = lambda piece: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Returns the answer; `show` is given every piece of it at once, `is_stopped` is asked at every token.

        The cache is kept where the template writes the conversation so far as it did before; only what is new is taken
        in then. After an error the conversation is as before.

        Raises:
            UsageError: the conversation does not fit the context any more, or there is nothing to take in.
            DataError: the chat template fails.
            ModelError: a logit is not finite.
        """
        messages = [*self._messages, Message("user", text)]
        written = render_turns(messages, self._tokenizer, _PLACE, prompt=True) if self.has_template else text
        new_ids, kept = self._plan(written)
        started = time.perf_counter()
        if not kept and self._session.position:
            self._session.reset()
        logits = self._session.prefill(np.array(new_ids, dtype=np.int64))
        run = self._write(logits, show, is_stopped)
        self._held = written + self._backend.decode(run.chosen, skip_special_tokens=False)
        self._waiting = run.chosen[-1:]
        self._messages = [*messages, Message("assistant", run.text)]
        seconds, steps = run.last - run.first, len(run.chosen) - 1
        return Answer(
            text=run.text,
            token_ids=run.chosen[:-1] if run.ending == "end" else run.chosen,
            read_tokens=len(new_ids),
            kept_tokens=kept,
            first_token_s=run.first - started,
            tokens_per_s=steps / seconds if seconds > 0 else 0.0,
            ending=run.ending,
        )

    @property
    def _backend(self) -> Tokenizer:
        backend: Tokenizer = self._tokenizer.backend_tokenizer
        return backend

    def _plan(self, written: str) -> tuple[list[int], int]:
        """Returns the tokens to take in so that the cache stands for `written`, and how many are in it already.

        Raises:
            UsageError: they do not fit, or there are none.
        """
        kept = self._session.position if self._held else 0
        if kept and self.has_template and written.startswith(self._held):
            new_ids = [*self._waiting, *self._encode(written[len(self._held) :])]
        else:
            new_ids, kept = self._encode(written), 0
        if not new_ids:
            raise UsageError("found an empty text and no template around it, expected something to continue.")
        room = self._session.context_length
        if kept + len(new_ids) > room:
            raise UsageError(
                f"the context is full: the conversation takes {kept + len(new_ids)} tokens, the session holds {room}. "
                "Begin a new conversation, or open the model with a longer context where it allows one."
            )
        return new_ids, kept

    def _encode(self, text: str) -> list[int]:
        """Returns the tokens of a text; a template writes its special tokens itself."""
        return list(self._backend.encode(text, add_special_tokens=not self.has_template).ids)

    def _write(
        self, logits: NDArray[np.float32], show: Callable[[str], object], is_stopped: Callable[[], bool]
    ) -> _Run:
        """Writes until the answer ends; `logits` (V,) are those after the question."""
        session, stream, chosen = self._session, TextStream(self._backend), list[int]()
        known = len(self._tokenizer)  # a padded vocabulary has rows that no text belongs to
        first = 0.0
        while True:
            token = choose_token(logits[:known], self._random.random(), self._sampling)
            last = time.perf_counter()
            first = first or last
            chosen.append(token)
            if token in self._ends:
                ending: Ending = "end"
                break
            show(stream.push(token))
            if len(chosen) >= self._config.max_tokens:
                ending = "max-tokens"
                break
            if session.position >= session.context_length:
                ending = "context-full"
                break
            if is_stopped():
                ending = "stopped"
                break
            logits = session.step(token)
        show(stream.finish())
        return _Run(chosen, stream.text, ending, first, last)
