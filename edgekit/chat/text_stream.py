"""Turns tokens into text while they come: a character is shown when all of its bytes are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """The text of one answer; special tokens are not shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Starts with no tokens."""
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """Returns what can be shown now that `token` is there; nothing in the middle of a character."""
        self._ids.append(token)
        piece: str = self._stream.step(self._tokenizer, token) or ""
        self._shown += piece
        return piece

    def finish(self) -> str:
        """Returns what was held back: bytes that never became a character are shown as U+FFFD."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest = whole[len(self._shown) :]
        self._shown += rest
        return rest

    @property
    def text(self) -> str:
        """Returns all that was shown."""
        return self._shown
