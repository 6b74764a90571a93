"""What a language model learns from: a text, a conversation, or a prompt with its completion; or is asked.

A row of a source becomes a checked document here, and a document becomes a row of a parquet file and back. How it is
turned into tokens is `conversations.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import DataError
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:
    import pyarrow

    from edgekit.data.source import Columns

Form = Literal["text", "chat", "prompt-completion", "prompt"]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str
    """What was said."""


@dataclass(frozen=True)
class PlainText:
    """Text that is learned as it is."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the assistant's are learned; a prompt is one without any, until a teacher answers it."""

    messages: tuple[Message, ...]

    @property
    def first_answer(self) -> int | None:
        """Returns the place of the first turn of the assistant that answers a user; a greeting answers nothing."""
        roles = [message.role for message in self.messages]
        asked = roles.index("user") if "user" in roles else len(roles)
        return next((place for place in range(asked, len(roles)) if roles[place] == "assistant"), None)


@dataclass(frozen=True)
class Completion:
    """A prompt, and what is learned to follow it. Nothing is put between them."""

    prompt: str
    completion: str


Document = PlainText | Conversation | Completion
_COLUMNS: dict[Form, list[str]] = {
    "text": ["text"],
    "chat": ["messages"],
    "prompt-completion": ["prompt", "completion"],
    "prompt": ["prompt"],
}
Cells = Mapping[str, Any]
"""A row of a source or of a parquet file: column to value."""


def columns_of(form: Form, columns: Columns) -> dict[str, str]:
    """Returns the setting that names a column to the column, for the columns that a form reads."""
    return {f"columns.{name}": getattr(columns, name) for name in _COLUMNS[form]}


def read_document(cells: Cells, form: Form, columns: Columns, place: str) -> Document:
    """Returns the document in a row of a source; `place` names file and row in errors.

    Raises:
        DataError: a column is missing or empty, a role is unknown, or a conversation has no assistant turn.
    """
    return _READERS[form](cells, columns, place)


def check_text(value: object, place: str) -> str:
    """Returns `value` when it is a text with more than white space in it.

    Raises:
        DataError: it is not; `place` says where it stands.
    """
    if value is None:
        raise DataError(f"{place}: found no text. Fill it or remove the row.")
    if not isinstance(value, str):
        raise DataError(f"{place}: found {value!r} ({type(value).__name__}), expected text.")
    if not value.strip():
        raise DataError(f"{place}: found only white space ({value!r}), expected text. Fill it or remove the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: found half of a surrogate pair, expected valid Unicode. Repair the text.") from error
    return value


def words_of(document: Document) -> str:
    """Returns the text of a document without any template: turns, or prompt and completion, one below the other."""
    if isinstance(document, PlainText):
        return document.text
    if isinstance(document, Completion):
        return f"{document.prompt}\n{document.completion}"
    return "\n".join(message.content for message in document.messages)


def context_of(document: Document) -> tuple[str, ...]:
    """Returns what stands before the first thing that is learned; of a plain text, all of it.

    Two documents with the same context must not be in training and test data: one gives the other's answer away.
    """
    if isinstance(document, PlainText):
        return (document.text,)
    if isinstance(document, Completion):
        return (document.prompt,)
    if document.first_answer is None:
        return spelled(document)
    roles = [message.role for message in document.messages]
    return spelled(document)[: 2 * roles.index("assistant")] or spelled(document)


def spelled(document: Document) -> tuple[str, ...]:
    """Returns everything that makes a document what it is, as texts in order."""
    if isinstance(document, PlainText):
        return (document.text,)
    if isinstance(document, Completion):
        return (document.prompt, document.completion)
    return tuple(part for message in document.messages for part in (message.role, message.content))


def schema_of(form: Form) -> pyarrow.Schema:
    """Returns the columns that documents of a form are stored in."""
    import pyarrow

    text = pyarrow.string()
    turn = pyarrow.struct([("role", text), ("content", text)])
    fields: dict[Form, list[tuple[str, Any]]] = {
        "text": [("text", text)],
        "chat": [("messages", pyarrow.list_(turn))],
        "prompt": [("messages", pyarrow.list_(turn))],
        "prompt-completion": [("prompt", text), ("completion", text)],
    }
    return pyarrow.schema(fields[form])


def to_cells(document: Document) -> dict[str, Any]:
    """Returns the row that a document is stored as."""
    if isinstance(document, PlainText):
        return {"text": document.text}
    if isinstance(document, Completion):
        return {"prompt": document.prompt, "completion": document.completion}
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in document.messages]}


def from_cells(cells: Cells, form: Form) -> Document:
    """Returns the document that a stored row holds."""
    if form == "text":
        return PlainText(cells["text"])
    if form == "prompt-completion":
        return Completion(cells["prompt"], cells["completion"])
    return Conversation(tuple(Message(turn["role"], turn["content"]) for turn in cells["messages"]))


def _read_text(cells: Cells, columns: Columns, place: str) -> Document:
    return PlainText(_text_in(cells, columns.text, "columns.text", place))


def _read_prompt(cells: Cells, columns: Columns, place: str) -> Document:
    return Conversation((Message("user", _text_in(cells, columns.prompt, "columns.prompt", place)),))


def _read_completion(cells: Cells, columns: Columns, place: str) -> Document:
    prompt = _text_in(cells, columns.prompt, "columns.prompt", place)
    return Completion(prompt, _text_in(cells, columns.completion, "columns.completion", place))


def _read_conversation(cells: Cells, columns: Columns, place: str) -> Document:
    name = columns.messages
    turns = _cell(cells, name, "columns.messages", place)
    place = f"{place}, column '{name}'"
    if not isinstance(turns, list) or not turns:
        found = "nothing" if not turns else f"a {type(turns).__name__}"
        raise DataError(f'{place}: found {found}, expected turns such as [{{"role": "user", "content": "..."}}].')
    messages = tuple(_messages(turns, place))
    if all(message.role != "assistant" for message in messages):
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"{place}: found a conversation without an assistant turn (roles: {roles}), expected at least one: "
            "nothing could be learned from it. Remove the row."
        )
    return Conversation(messages)


def _messages(turns: list[Any], place: str) -> Iterator[Message]:
    for number, turn in enumerate(turns, start=1):
        here = f"{place}, turn {number}"
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            found = f"the keys {', '.join(turn)}" if isinstance(turn, Mapping) else f"a {type(turn).__name__}"
            raise DataError(f"{here}: found {found}, expected an object with role and content.")
        role, content = turn["role"], turn["content"]
        if role not in ROLES:
            raise DataError(
                f"{here}: found the role {role!r}, expected one of {', '.join(ROLES)}.{did_you_mean(str(role), ROLES)}"
            )
        more = [key for key, value in turn.items() if key not in ("role", "content") and value not in (None, [], "")]
        if more:
            raise DataError(
                f"{here}: found the key '{more[0]}', expected role and content alone: a template may show more to the "
                "model than edgekit would keep. Remove it, or write it into the content."
            )
        yield Message(role, "" if role == "system" and content == "" else check_text(content, here))


def _text_in(cells: Cells, name: str, key: str, place: str) -> str:
    return check_text(_cell(cells, name, key, place), f"{place}, column '{name}'")


def _cell(cells: Cells, name: str, key: str, place: str) -> object:
    if name not in cells:
        known = ", ".join(f"'{column}'" for column in cells)
        raise DataError(f"{place}: {key}: no column '{name}'.{did_you_mean(name, cells)} Columns: {known}.")
    return cells[name]


_READERS: dict[Form, Callable[[Cells, Columns, str], Document]] = {
    "text": _read_text,
    "chat": _read_conversation,
    "prompt-completion": _read_completion,
    "prompt": _read_prompt,
}
