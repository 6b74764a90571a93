"""Turns, cache, endings: on a session that answers by a script and remembers what it was fed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.chat.conversation import Conversation, ConversationConfig
from edgekit.errors import DataError, UsageError
from edgekit.runtimes.generation import require_room
from edgekit.runtimes.torch_generation import TorchGenerationSession
from tests.pico_decoders import CONTEXT, pico_byte_tokenizer, pico_decoder

TOKENIZER = pico_byte_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def tokens_of(text: str) -> list[int]:
    return TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids


def text_of(ids: list[int]) -> str:
    return TOKENIZER.backend_tokenizer.decode(ids, skip_special_tokens=False)


class Script:
    """A session whose likeliest tokens are those of a script, whatever it is fed."""

    def __init__(self, *answers: str, context_length: int = 10_000) -> None:
        self.script = [token for answer in answers for token in [*tokens_of(answer), END]]
        self.context_length = context_length
        self.fed: list[int] = []
        self.calls: list[tuple[str, int]] = []
        self.resets = 0

    @property
    def position(self) -> int:
        return len(self.fed)

    def _take(self, ids) -> np.ndarray:
        require_room(self.position, len(ids), self.context_length)
        self.fed += [int(token) for token in ids]
        logits = np.zeros(len(TOKENIZER), dtype=np.float32)
        logits[self.script.pop(0)] = 9
        return logits

    def prefill(self, ids):
        self.calls.append(("prefill", len(ids)))
        return self._take(ids)

    def step(self, token):
        self.calls.append(("step", 1))
        return self._take([token])

    def reset(self):
        self.resets += 1
        self.fed = []

    def close(self):
        pass


def talk(session, **settings) -> Conversation:
    return Conversation(session, TOKENIZER, {END}, ConversationConfig(**settings))


def rendered(*turns: tuple[str, str], prompt: bool = False) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def test_an_answer_ends_at_the_end_of_its_turn_and_is_shown_as_it_comes():
    session, shown = Script("It is the sea."), []
    answer = talk(session).ask("What is it?", shown.append)
    assert answer.text == "".join(shown) == "It is the sea."
    assert answer.ending == "end"
    assert answer.token_ids == tokens_of("It is the sea.")
    assert len([piece for piece in shown if piece]) > 3
    assert text_of(session.fed) == rendered(("user", "What is it?"), prompt=True) + "It is the sea."
    assert answer.read_tokens == session.calls[0][1]
    assert answer.first_token_s > 0
    assert answer.tokens_per_s > 0


def test_a_second_turn_takes_in_only_what_is_new():
    session = Script("The sea.", "Yes.")
    conversation = talk(session, system="You are old.")
    conversation.ask("What is it?")
    before = list(session.fed)
    answer = conversation.ask("Is it?")
    assert session.resets == 0
    assert session.fed[: len(before)] == before
    assert answer.kept_tokens == len(before)
    turns = [("system", "You are old."), ("user", "What is it?"), ("assistant", "The sea."), ("user", "Is it?")]
    assert text_of(session.fed) == rendered(*turns, prompt=True) + "Yes."
    assert answer.read_tokens + answer.kept_tokens == len(session.fed) - len(tokens_of("Yes."))


def test_a_template_that_rewrites_what_was_said_starts_over():
    session = Script(" The sea. ", "Yes.")
    trimming = pico_byte_tokenizer()
    trimming.chat_template = TOKENIZER.chat_template.replace("message['content']", "message['content'] | trim")
    conversation = Conversation(session, trimming, {END}, ConversationConfig())
    conversation.ask("What is it?")
    answer = conversation.ask("Is it?")
    assert session.resets == 1
    assert answer.kept_tokens == 0
    turns = [("user", "What is it?"), ("assistant", "The sea."), ("user", "Is it?")]
    assert text_of(session.fed) == rendered(*turns, prompt=True) + "Yes."


@pytest.mark.parametrize(
    ("settings", "stop_at", "ending", "length"),
    [({"max_tokens": 3}, None, "max-tokens", 3), ({"max_tokens": 1}, None, "max-tokens", 1), ({}, 2, "stopped", 2)],
)
def test_a_cut_answer_is_part_of_the_conversation(settings, stop_at, ending, length):
    session = Script("abcdefgh")
    conversation = talk(session, **settings)
    shown: list[str] = []
    answer = conversation.ask("Go on", shown.append, lambda: stop_at is not None and len(shown) >= stop_at)
    assert (answer.ending, answer.text) == (ending, "abcdefgh"[:length])
    session.script = [*tokens_of("x"), END]
    conversation.ask("More")
    turns = [("user", "Go on"), ("assistant", "abcdefgh"[:length]), ("user", "More")]
    assert text_of(session.fed).removesuffix("x") == rendered(*turns, prompt=True)
    assert session.resets == 0


def test_a_full_context_cuts_the_answer_and_refuses_the_next_question_leaving_all_as_it_was():
    question = len(tokens_of(rendered(("user", "Go on"), prompt=True)))
    session = Script("abcdefghijklmnop", context_length=question + 4)
    conversation = talk(session)
    answer = conversation.ask("Go on")
    # One token follows from the question, and one from each of the four that still fit.
    assert (answer.ending, answer.text) == ("context-full", "abcde")
    fed = list(session.fed)
    with pytest.raises(UsageError, match=rf"the context is full: .* the session holds {question + 4}\. Begin"):
        conversation.ask("More")
    assert session.fed == fed
    conversation.forget()
    session.script = [*tokens_of("ok"), END]
    assert conversation.ask("Go on").text == "ok"
    assert session.resets == 1


def test_a_model_without_template_continues_each_text_on_its_own():
    plain = pico_byte_tokenizer()
    plain.chat_template = None
    session = Script(" sea", " coast")
    conversation = Conversation(session, plain, {END}, ConversationConfig())
    assert not conversation.has_template
    assert conversation.ask("The old man and the").text == " sea"
    assert conversation.ask("The town is on a").text == " coast"
    assert text_of(session.fed) == "The town is on a coast"
    with pytest.raises(UsageError, match="found an empty text"):
        conversation.ask("")
    with pytest.raises(UsageError, match="no chat template"):
        Conversation(session, plain, {END}, ConversationConfig(system="Be kind."))


def test_a_template_that_fails_is_one_error():
    refusing = pico_byte_tokenizer()
    refusing.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match=r"chat template failed: no system turns here \(roles: user\)"):
        Conversation(Script("a"), refusing, {END}, ConversationConfig()).ask("Hello")


def test_rows_beyond_the_vocabulary_are_never_chosen():
    session = Script("a")
    take = session._take

    def padded(ids):
        return np.concatenate([take(ids), np.full(20, 99, dtype=np.float32)])

    session._take = padded
    assert talk(session).ask("Hello").text == "a"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=8), st.integers(1, 12)), max_size=4))
def test_the_cache_always_stands_for_the_conversation(turns):
    session, said = Script(), []
    conversation = talk(session, max_tokens=100)
    for question, reply, cut in turns:
        session.script = [*tokens_of(reply), END]
        count = 0

        def stop(cut=cut):
            nonlocal count
            count += 1
            return count >= cut

        answer = conversation.ask(question, is_stopped=stop)
        said += [("user", question), ("assistant", answer.text)]
        assert answer.ending == "end" or len(answer.token_ids) == cut
        expected = rendered(*said[:-1], prompt=True)
        waiting = conversation._waiting if answer.ending != "end" else []
        assert text_of([*session.fed, *waiting]) == expected + text_of(answer.token_ids)


def test_a_kept_cache_gives_the_answers_of_a_fresh_one():
    loaded = pico_decoder("llama", layers=2)
    session = TorchGenerationSession(loaded.model, CONTEXT)
    conversation = Conversation(session, TOKENIZER, {END}, ConversationConfig(max_tokens=6))
    first, second = conversation.ask("a b"), conversation.ask("c")
    assert second.kept_tokens > 0
    fresh = TorchGenerationSession(loaded.model, CONTEXT)
    prompt = tokens_of(rendered(("user", "a b"), prompt=True))
    middle = tokens_of(rendered(("assistant", ""), ("user", "c"), prompt=True).removeprefix("<|im_start|>assistant\n"))
    logits = fresh.prefill(np.array([*prompt, *first.token_ids, *middle]))
    written = []
    for _ in second.token_ids:
        written.append(int(logits[: len(TOKENIZER)].argmax()))
        logits = fresh.step(written[-1])
    assert written == second.token_ids


def test_the_seed_decides_what_is_drawn():
    loaded = pico_decoder("llama", layers=1)

    def drawn(seed: int) -> list[int]:
        session = TorchGenerationSession(loaded.model, CONTEXT)
        config = ConversationConfig(temperature=2.0, top_p=0.95, max_tokens=12, seed=seed)
        return Conversation(session, TOKENIZER, {END}, config).ask("a").token_ids

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
