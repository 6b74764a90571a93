"""Which tokens of a document are learned, with templates of every manner."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from edgekit.data.conversations import (
    EncodedDocument,
    answer_spans,
    encode_documents,
    encode_prompt,
    template_token_ids,
)
from edgekit.data.documents import Completion, Conversation, Document, Message, PlainText
from edgekit.errors import DataError
from tests.pico_decoders import CHAT_TEMPLATE, pico_byte_tokenizer

GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
)
END_OF_TEXT = CHAT_TEMPLATE.replace("{% if add", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}{% if add")
PLAIN_MARKS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FORGETS = (  # like Qwen 3's: only the last answer shows a thought
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}[thought]{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWO_ANSWERS = [("user", "hello"), ("assistant", "The sea."), ("user", "and on"), ("assistant", "A coast")]


def conversation(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns))


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = pico_byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> EncodedDocument:
    return next(encode_documents([document], tokenizer, "here"))


def shown(encoded: EncodedDocument, tokenizer: PreTrainedTokenizerFast) -> str:
    """Writes a document with what is learned in brackets."""
    parts, inside = [], False
    for token, learned in zip(encoded.ids, encoded.learned, strict=True):
        parts.append(("[" if learned else "]") if learned != inside else "")
        parts.append(tokenizer.decode([token]))
        inside = learned
    return "".join([*parts, "]" if inside else ""])


START, END = "<|im_start|>", "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, f"{START}user\nhello{END}\n{START}assistant\n[The sea.{END}]\n{START}user\nand on{END}\n"
                        f"{START}assistant\n[A coast{END}]\n"),
        (GENERATION, f"{START}user\nhello{END}\n{START}assistant\n[The sea.{END}]\n{START}user\nand on{END}\n"
                     f"{START}assistant\n[A coast{END}]\n"),
        (DEFAULT_SYSTEM, f"{START}system\nBe kind.{END}\n{START}user\nhello{END}\n{START}assistant\n[The sea.{END}]\n"
                         f"{START}user\nand on{END}\n{START}assistant\n[A coast{END}]\n"),
        (END_OF_TEXT, f"{START}user\nhello{END}\n{START}assistant\n[The sea.{END}]\n{START}user\nand on{END}\n"
                      f"{START}assistant\n[A coast{END}]\n<|endoftext|>"),
        (PLAIN_MARKS, "user: hello\nassistant:[ The sea.\n]user: and on\nassistant:[ A coast\n]"),
        (NO_PROMPT, f"{START}user\nhello{END}\n[{START}assistant\nThe sea.{END}]\n{START}user\nand on{END}\n"
                    f"[{START}assistant\nA coast{END}]\n"),
    ],
    ids=["marks", "generation", "default-system", "end-of-text", "plain", "no-prompt"],
)  # fmt: skip
def test_the_assistants_turns_are_learned_with_their_end_and_nothing_else(template: str, expected: str) -> None:
    tokenizer = tokenizer_with(template)
    encoded = encode(conversation(TWO_ANSWERS), tokenizer)
    assert shown(encoded, tokenizer) == expected
    turns = [{"role": role, "content": content} for role, content in TWO_ANSWERS]
    assert encoded.ids == tokenizer.apply_chat_template(turns)["input_ids"]


def test_a_generation_template_agrees_with_transformers_own_mask() -> None:
    tokenizer = tokenizer_with(GENERATION)
    turns = [{"role": role, "content": content} for role, content in [("system", "x"), *TWO_ANSWERS]]
    expected = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    encoded = encode(conversation([("system", "x"), *TWO_ANSWERS]), tokenizer)
    assert encoded.ids == expected["input_ids"]
    assert encoded.learned == [bool(flag) for flag in expected["assistant_masks"]]


def test_a_greeting_that_answers_nothing_is_not_learned() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    encoded = encode(conversation([("assistant", "Hello."), *TWO_ANSWERS[:2]]), tokenizer)
    assert shown(encoded, tokenizer).startswith(f"{START}assistant\nHello.{END}\n{START}user")
    assert encoded.learned.count(True) == len(tokenizer.encode("The sea.")) + 1


TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), st.text(min_size=1, max_size=12).filter(str.strip)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(TURNS, st.sampled_from([CHAT_TEMPLATE, DEFAULT_SYSTEM, END_OF_TEXT, GENERATION]))
def test_what_is_learned_spells_the_answers(turns: list[tuple[str, str]], template: str) -> None:
    tokenizer = tokenizer_with(template)
    turns = [("user", "first"), *turns, ("assistant", "last")]
    encoded = encode(conversation(turns), tokenizer)
    learned = [token for token, flag in zip(encoded.ids, encoded.learned, strict=True) if flag]
    answers = "".join(f"{content}{END}" for role, content in turns if role == "assistant")
    assert tokenizer.decode(learned, clean_up_tokenization_spaces=False) == answers
    # What a runtime feeds before it generates is exactly what stands before the last answer.
    prompt = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns[:-1]], add_generation_prompt=True
    )["input_ids"]
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.learned[len(prompt)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "here, row 0 .counted from 0.: found a conversation, and the tokenizer has no chat template"),
        ("{{ raise_exception('Roles must alternate!') }}", "chat template failed: Roles must alternate! .roles: user"),
        ("{% for m in messages %}", "not valid Jinja, line 1: Unexpected end of template.*import it again"),
        ("{{ messages[0].name.first }}", "chat template failed: .* has no attribute 'name'"),
        (FORGETS, "turn 2: the chat template writes the conversation up to here differently once more turns follow"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "turn 2: the chat template writes"),
        ("{% generation %}{% endgeneration %}{{ messages[0].content }}", "found 3 tokens and none to learn"),
    ],
)  # fmt: skip
def test_a_template_that_fails_or_is_not_exact_is_an_error(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(conversation(TWO_ANSWERS), tokenizer_with(template))


def test_one_answer_is_exact_where_the_template_forgets_earlier_thoughts() -> None:
    tokenizer = tokenizer_with(FORGETS)
    encoded = encode(conversation(TWO_ANSWERS[:2]), tokenizer)
    assert shown(encoded, tokenizer).endswith(f"assistant\n[[thought]The sea.{END}]\n")


def test_completions_are_learned_with_the_end_and_split_as_a_runtime_would() -> None:
    tokenizer = tokenizer_with(None)
    assert shown(encode(Completion("The sea", " and on"), tokenizer), tokenizer) == f"The sea[ and on{END}]"
    spaced = encode(
        Completion("The sea ", "and on"), tokenizer
    )  # ' and' is one token: it may not reach into the prompt
    assert shown(spaced, tokenizer) == f"The sea [and on{END}]"
    assert spaced.ids[: len(tokenizer.encode("The sea "))] == tokenizer.encode("The sea ")


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_prompt_keeps_its_own_tokens_whatever_follows(prompt: str, completion: str) -> None:
    tokenizer = tokenizer_with(None)
    encoded = encode(Completion(prompt, completion), tokenizer)
    own = tokenizer.encode(prompt)
    assert encoded.ids[: len(own)] == own
    assert encoded.learned == [False] * len(own) + [True] * (len(encoded.ids) - len(own))
    assert tokenizer.decode(encoded.ids[:-1], clean_up_tokenization_spaces=False) == prompt + completion


def sentencepiece_style() -> PreTrainedTokenizerFast:
    """Llama 2's manner: a mark in front of every text, so that pieces of one text cannot be encoded apart."""
    letters = ["▁", *"abc:"]
    merges = [("▁", "a"), ("▁", "b"), ("b", "c")]
    tokens = ["<unk>", "<s>", "</s>", *letters, *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_a_token_across_the_boundary_is_refused_where_the_pieces_cannot_be_encoded_apart() -> None:
    tokenizer = sentencepiece_style()
    encoded = encode(Completion("a:", " bc"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["<s>", "▁a", ":", "▁b", "c", "</s>"]
    assert encoded.learned == [False, False, False, True, True, True]
    with pytest.raises(DataError, match=r"at 'a: ' \| 'bc'; expected a boundary between tokens. Move white space"):
        encode(Completion("a: ", "bc"), tokenizer)


def test_of_a_plain_text_all_is_learned_but_the_first_token() -> None:
    for tokenizer, text in ((tokenizer_with(None), "The sea and on"), (sentencepiece_style(), "a bc")):
        encoded = encode(PlainText(text), tokenizer)
        assert encoded.ids == tokenizer(text)["input_ids"]
        assert encoded.learned == [False, *[True] * (len(encoded.ids) - 1)]


def test_errors_count_rows_on_and_documents_keep_their_order() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    documents: list[Document] = [PlainText("The sea"), conversation(TWO_ANSWERS), PlainText("A coast")]
    found = list(encode_documents(documents, tokenizer, "split 'train'"))
    assert [encoded.ids for encoded in found] == [encode(document, tokenizer).ids for document in documents]
    with pytest.raises(DataError, match=r"split 'train', row 41 .counted from 0.: found 1 tokens and none to learn"):
        list(encode_documents([PlainText("The sea"), PlainText("x")], tokenizer, "split 'train'", first=40))


def test_the_tokens_that_a_template_writes_are_found() -> None:
    tokenizer = tokenizer_with(DEFAULT_SYSTEM)
    names = set(tokenizer.convert_ids_to_tokens(sorted(template_token_ids(tokenizer))))
    assert {START, END, "B", "Ċ"} <= names
    assert template_token_ids(tokenizer_with(None)) == set()
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    found, more = template_token_ids(tokenizer_with(no_system)), template_token_ids(tokenizer_with(CHAT_TEMPLATE))
    assert set(tokenizer.encode(f"{START}user\n")) <= found
    assert more - found <= set(tokenizer.encode("system"))


def test_spans_are_characters_of_the_written_conversation() -> None:
    text, spans = answer_spans(conversation(TWO_ANSWERS), tokenizer_with(CHAT_TEMPLATE), "here")
    assert [text[start:end] for start, end in spans] == [f"The sea.{END}", f"A coast{END}"]


def test_a_prompt_waits_for_its_answer_and_is_not_learned_without() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    question = conversation([("user", "hello")])
    ids = encode_prompt(question, tokenizer, "here")
    assert tokenizer.decode(ids) == f"{START}user\nhello{END}\n{START}assistant\n"
    answered = encode(conversation([("user", "hello"), ("assistant", "The sea.")]), tokenizer)
    assert answered.ids[: len(ids)] == ids
    assert not any(answered.learned[: len(ids)])
    with pytest.raises(DataError, match=r"here, row 0 .*a prompt without an answer, .* `edgekit write`"):
        encode(question, tokenizer)
    with pytest.raises(DataError, match="no chat template"):
        encode_prompt(question, tokenizer_with(None), "here")
