"""`edgekit chat`: talk with a language model in the terminal."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edgekit.cli.options import AsJson, Seed, checked_config
from edgekit.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.chat.conversation import Answer, Conversation

_NEW = "/new"
_ENDINGS = {
    "end": "",
    "max-tokens": "; cut at --max-tokens",
    "context-full": f"; cut, the context is full: {_NEW} begins a new conversation, --context gives more room",
    "stopped": "; stopped",
}


def chat(
    model: Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    system: str | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 512,
    prompt: str | None = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> int:
    """Talk with a language model in any runtime that opens it; each answer is followed by its speed.

    Ctrl-C stops an answer, once more or Ctrl-D leaves; a line `/new` begins a new conversation. Where standard input is
    no terminal, each of its lines is one turn. A model without a chat template continues each text on its own.

    Parameters
    ----------
    model
        A language model: an artifact directory, or a bundle.
    runtime
        Runtime that runs it; by default onnxruntime for exports, torch for models and llama.cpp for GGUF.
    threads
        Threads that one call may use; by default all cores that this process may use.
    context
        Tokens to make room for; by default those of the model, 4096 at most.
    system
        What the model is told before the conversation begins.
    temperature
        Divides the logits; 0: always the likeliest token.
    top_p
        Draws only from the likeliest tokens that together have this probability.
    max_tokens
        Tokens after which an answer is cut.
    prompt
        Answer this, and leave.
    """
    from edgekit.artifact import Artifact
    from edgekit.benchmarking.machine import usable_cores
    from edgekit.chat.conversation import ConversationConfig
    from edgekit.chat.opening import open_conversation

    settings = {"system": system, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    config = checked_config(ConversationConfig, settings, "edgekit chat")
    if context is not None and context < 1:
        raise UsageError(f"--context: found {context}, expected at least 1.")
    count = threads if threads is not None else len(usable_cores()) or 1
    if count < 1:
        raise UsageError(f"--threads: found {count}, expected at least 1.")
    opened = open_conversation(Artifact.open(model), config, runtime=runtime, threads=count, context_length=context)
    screen = _Screen(as_json=json)
    room = opened.session.context_length
    screen.note(f"{model} in {opened.runtime}, {_counted(count, 'thread')}, room for {room:,} tokens.")
    if not opened.conversation.has_template:
        screen.note("It has no chat template: each text is continued on its own.")
    if prompt is not None:
        screen.answer(opened.conversation, prompt)
    else:
        _talk(opened.conversation, screen)
    opened.session.close()
    return 0


def _talk(conversation: Conversation, screen: _Screen) -> None:
    """Answers line after line; what does not fit is said, and on a terminal the next line may begin anew."""
    interactive = sys.stdin.isatty()
    if interactive:
        screen.note(f"Ctrl-C stops an answer, Ctrl-D leaves, {_NEW} begins a new conversation.")
    for line in _lines(interactive=interactive):
        if line.strip() == _NEW:
            conversation.forget()
            continue
        try:
            if line.strip():
                screen.answer(conversation, line)
        except EdgekitError as error:
            if not interactive:
                raise
            screen.note(str(error))


def _lines(*, interactive: bool) -> Iterator[str]:
    """Yields what is typed, or the lines of standard input, until its end or Ctrl-C."""
    if not interactive:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    _edit_lines()
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return


def _edit_lines() -> None:
    """Lets `input` edit and recall lines, where the system can."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401


class _Screen:
    """Shows answers on standard output as they come, and everything about them on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        if not as_json and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another

    def note(self, text: str) -> None:
        """Says something that is no answer."""
        sys.stderr.write(f"{_dim(text)}\n")

    def answer(self, conversation: Conversation, text: str) -> None:
        """Asks, shows the answer and its speed. Ctrl-C stops it; a second one ends the command."""
        with _stop_on_interrupt() as is_stopped:
            answer = conversation.ask(text, self._show, is_stopped)
        if self._as_json:
            from edgekit.cli.terminal import write_json_line

            write_json_line({"kind": "answer", **asdict(answer)})
            return
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.note(_speed(answer))

    def _show(self, piece: str) -> None:
        if self._as_json or not piece:
            return
        if sys.stdout.isatty():
            from edgekit.reporting.wording import printable

            piece = printable(piece)  # no model moves the cursor
        sys.stdout.write(piece)
        sys.stdout.flush()


def _speed(answer: Answer) -> str:
    kept = f" and {answer.kept_tokens} kept" if answer.kept_tokens else ""
    rate = f", {answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s else ""
    return (
        f"[{_counted(len(answer.token_ids), 'token')}, the first after {1e3 * answer.first_token_s:.0f} ms "
        f"({answer.read_tokens} read{kept}){rate}{_ENDINGS[answer.ending]}]"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether Ctrl-C was pressed; pressed again, it interrupts as it always does.

    A call of the runtime is never interrupted the first time: its cache would be left half written.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def press(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text
