"""Turns documents into token ids and says which of them a language model learns to predict.

Of a conversation it learns the assistant's turns with the token that ends each, of a prompt with a completion the
completion and the end, of a plain text everything. The first token of a document has nothing before it and is never
learned. How documents are laid side by side is `packing.py`'s matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise, takewhile
from typing import TYPE_CHECKING, Any

from edgekit.data.documents import Completion, Conversation, Document, Message, PlainText
from edgekit.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""First character and the one after the last."""
_BATCH = 1000
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class EncodedDocument:
    """A document as tokens."""

    ids: list[int]
    """Token ids, with the special tokens that belong to it."""
    learned: list[bool]
    """For each token, whether the model learns to predict it from those before; the first is never learned."""


def encode_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, where: str, *, first: int = 0
) -> Iterator[EncodedDocument]:
    """Yields the tokens of each document, whole however long it is.

    Args:
        documents: what to encode.
        tokenizer: with a chat template, where there are conversations.
        where: names the documents in errors, for example the split.
        first: number of the first document in `where`, counted from 0.

    Raises:
        DataError: a document has fewer than 2 tokens, the chat template fails or cannot tell what the assistant says,
            or a prompt and its completion cannot be told apart in tokens.
    """
    remaining = iter(documents)
    row = first
    while batch := list(islice(remaining, _BATCH)):
        texts = [document.text for document in batch if isinstance(document, PlainText)]
        encodings = iter(tokenizer.backend_tokenizer.encode_batch_fast(texts))
        for document in batch:
            place = f"{where}, row {row} (counted from 0)"
            if isinstance(document, PlainText):
                ids = list(next(encodings).ids)
                encoded = EncodedDocument(ids, [False, *[True] * (len(ids) - 1)])
            elif isinstance(document, Completion):
                encoded = _encode_completion(document, tokenizer, place)
            else:
                encoded = _encode_conversation(document, tokenizer, place)
            if not any(encoded.learned):
                raise DataError(
                    f"{place}: found {len(encoded.ids)} tokens and none to learn, expected at least two tokens, the "
                    "second to be learned from the first. Remove the row from the data."
                )
            yield encoded
            row += 1


def encode_choice(prompt: str, choice: str, tokenizer: PreTrainedTokenizerBase, place: str) -> EncodedDocument:
    """Returns a prompt and what may follow it as tokens, the latter marked as learned; no end token is added.

    Raises:
        DataError: the two cannot be told apart in tokens.
    """
    encoded, before, _ = _encode_parts(Completion(prompt, choice), tokenizer, place)
    return EncodedDocument([*before, *encoded.ids], [*[False] * len(before), *encoded.learned])


def answer_spans(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, place: str) -> tuple[str, list[Span]]:
    """Returns a conversation as the chat template writes it, and which characters of that the assistant says.

    A template with `{% generation %}` blocks tells by itself. With any other, the conversation is written up to each
    answer, with the prompt for it, and once more with the answer: what was added, up to the special token that ends it,
    is what the assistant says. (A greeting that begins the conversation answers nothing and is not among it.)

    Raises:
        DataError: the tokenizer has no template, it fails, or it writes the beginning of a conversation differently
            once more turns follow.
    """
    template = _template(tokenizer, place)
    messages = conversation.messages
    if _GENERATION.search(template):
        return _render_generation(template, messages, tokenizer, place)
    whole = render_turns(messages, tokenizer, place)
    spans = []
    for index, message in enumerate(messages):
        if message.role != "assistant" or index == 0:
            continue
        before = render_turns(messages[:index], tokenizer, place, prompt=True)
        after = render_turns(messages[: index + 1], tokenizer, place)
        shared = _shared_length(after, whole, tokenizer)
        if not whole.startswith(before) or len(before) > shared or _without_specials(after[shared:], tokenizer):
            raise DataError(
                f"{place}: turn {index + 1}: the chat template writes the conversation up to here differently once "
                "more turns follow, so what the assistant says cannot be told exactly. Make a conversation of each "
                "answer with the turns before it, or mark what is said with {% generation %} in the template."
            )
        spans.append((len(before), _end_of_turn(whole, (len(before), shared), message.content, tokenizer)))
    return whole, spans


def template_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns the ids of all tokens that the chat template itself writes; none where there is no template."""
    found: set[int] = set()
    if not tokenizer.chat_template:
        return found
    turns = [Message("user", "a"), Message("assistant", "a"), Message("user", "a")]
    for messages in ([Message("system", "a"), *turns], turns, turns[:2]):
        for prompt in (False, True):
            try:
                text = render_turns(messages, tokenizer, "chat template", prompt=prompt)
            except DataError:  # a template without system turns refuses them
                continue
            found.update(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    return found


def encode_prompt(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, place: str) -> list[int]:
    """Returns the tokens of turns that wait for an answer, ready for it.

    Raises:
        DataError: the tokenizer has no chat template, or it fails.
    """
    _template(tokenizer, place)
    text = render_turns(conversation.messages, tokenizer, place, prompt=True)
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def _encode_conversation(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, place: str) -> EncodedDocument:
    if all(message.role != "assistant" for message in conversation.messages):
        raise DataError(
            f"{place}: found a prompt without an answer, expected one to learn or to be judged on. Let a teacher "
            "answer the prompts first: `edgekit write`."
        )
    text, spans = answer_spans(conversation, tokenizer, place)
    edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
    said = {start for start, _ in spans}
    pieces = [(text[start:end], start in said) for start, end in pairwise(edges)]
    return _encode_pieces(pieces, tokenizer.backend_tokenizer, place)


def _encode_completion(document: Completion, tokenizer: PreTrainedTokenizerBase, place: str) -> EncodedDocument:
    encoded, before, after = _encode_parts(document, tokenizer, place)
    end = after or ([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)])
    ids = [*before, *encoded.ids, *end]
    return EncodedDocument(ids, [False, *[*[False] * len(before), *encoded.learned, *[True] * len(end)][1:]])


def _encode_parts(
    document: Completion, tokenizer: PreTrainedTokenizerBase, place: str
) -> tuple[EncodedDocument, list[int], list[int]]:
    """Returns the tokens of prompt and completion, and the special tokens that the tokenizer puts before and after."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    encoded = _encode_pieces([(document.prompt, False), (document.completion, True)], backend, place)
    sample = backend.encode("a")
    before = _leading_specials(sample.ids, sample.special_tokens_mask)
    after = _leading_specials(sample.ids[::-1], sample.special_tokens_mask[::-1])[::-1]
    return encoded, before, after


def _encode_pieces(pieces: Sequence[tuple[str, bool]], backend: Tokenizer, place: str) -> EncodedDocument:
    """Encodes pieces of one text so that no token is in two of them.

    Where the tokens of the whole text begin with those of each piece's beginning, as a runtime sees it, they are
    taken. Elsewhere a token straddles two pieces (a prompt that ends in a space), and each piece is encoded alone,
    if that says the same.
    """
    text = "".join(piece for piece, _ in pieces)
    whole = backend.encode(text, add_special_tokens=False).ids
    ends = list(accumulate(len(piece) for piece, _ in pieces))
    prefixes = [backend.encode(text[:end], add_special_tokens=False).ids for end in ends[:-1]]
    if all(whole[: len(prefix)] == prefix for prefix in prefixes):
        edges = [0, *map(len, prefixes), len(whole)]
        counts = [end - start for start, end in pairwise(edges)]
        ids = whole
    else:
        parts = [backend.encode(piece, add_special_tokens=False).ids for piece, _ in pieces]
        ids, counts = [token for part in parts for token in part], [len(part) for part in parts]
        if backend.decode(ids, skip_special_tokens=False) != backend.decode(whole, skip_special_tokens=False):
            raise DataError(
                f"{place}: no tokens of this tokenizer end where what is learned begins, at {pieces[0][0][-20:]!r} | "
                f"{pieces[1][0][:20]!r}; expected a boundary between tokens. Move white space from the end of the "
                "prompt to the beginning of what follows."
            )
    learned = [flag for (_, flag), count in zip(pieces, counts, strict=True) for _ in range(count)]
    return EncodedDocument(ids, [False, *learned[1:]])


def _template(tokenizer: PreTrainedTokenizerBase, place: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"{place}: found a conversation, and the tokenizer has no chat template to write it with. Use a model with "
            "one, or data with form = 'text' or 'prompt-completion'."
        )
    return str(tokenizer.get_chat_template())


def render_turns(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, place: str, *, prompt: bool = False
) -> str:
    """Returns a conversation as the chat template writes it; with `prompt`, ready for the assistant's answer.

    Raises:
        DataError: the template fails; `place` names the conversation.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:
        raise _failed(error, messages, place) from error


def _render_generation(
    template: str, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, place: str
) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": message.role, "content": message.content} for message in messages]
    tokens: dict[str, Any] = tokenizer.special_tokens_map
    try:
        rendered: Any = render_jinja_template(
            conversations=[turns], chat_template=template, return_assistant_tokens_mask=True, **tokens
        )
    except Exception as error:
        raise _failed(error, messages, place) from error
    texts, spans = rendered
    return texts[0], [(start, end) for start, end in spans[0] if start < end]


def _failed(error: Exception, messages: Sequence[Message], place: str) -> DataError:
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return DataError(
            f"{place}: the chat template is not valid Jinja, line {error.lineno}: {error.message}. Correct it in the "
            "model's source (chat_template.jinja, or chat_template in tokenizer_config.json), and import it again."
        )
    roles = ", ".join(message.role for message in messages)
    reason = str(error).strip() or type(error).__name__
    return DataError(
        f"{place}: the chat template failed: {reason} (roles: {roles}). Change the conversation to what the template "
        "expects, or remove it."
    )


def _end_of_turn(whole: str, span: Span, content: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns where the special token after an answer ends: no one generates the line break behind it."""
    start, end = span
    ending = "|".join(map(re.escape, _specials(tokenizer)))
    found = re.compile(rf"{re.escape(content.strip())}\s*(?:{ending})").search(whole, start, end) if ending else None
    return found.end() if found else end


def _shared_length(first: str, second: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many characters two texts begin with alike, without a part of a special token at the end."""
    pairs = enumerate(zip(first, second, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
    for token in _specials(tokenizer):
        start = first.find(token, max(0, shared - len(token) + 1))
        if 0 <= start < shared < start + len(token):
            return start
    return shared


def _without_specials(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    for token in _specials(tokenizer):
        text = text.replace(token, "")
    return text.strip()


def _specials(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)


def _leading_specials(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """Returns the ids before the first that is not special."""
    return [token for token, _ in takewhile(lambda pair: pair[1], zip(ids, mask, strict=True))]
