"""Tokenizers: transformers' own, the bare `tokenizer.json`, and the vectors that prove that two of them agree.

A tokenizer that edgekit saves neither pads nor truncates by itself: batches decide that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ModelError
from edgekit.models.files import TOKENIZER_FILES
from edgekit.models.quiet import quiet_transformers
from edgekit.results import TokenizerVector

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# Where a tokenizer was loaded from, and how a call once padded and cut: not part of what it is.
_TRANSIENT_SETTINGS = (
    "name_or_path",
    "is_local",
    "local_files_only",
    "max_length",
    "stride",
    "truncation_strategy",
    "pad_to_multiple_of",
)

NASTY_TEXTS: tuple[str, ...] = (
    "",
    " ",
    " \t\n\r\n ",
    "\u00a0\u2003\u200b\ufeff",
    "a",
    "A plain sentence, with a comma; it ends here.",
    "UPPER lower MiXeD Title",
    "don't can't it's -- well... (yes) [no] {maybe} <b>tags</b><br /><br />",
    "\"unpaired 'quotes ((and [brackets {never} closed",
    "!!!???...,,,;;;:::---___***###@@@&&&%%%$$$",
    "http://example.com/a?b=c&d=%20#e user@example.org @someone #topic C++ A/B",
    "1234567890 3.14159 1,000,000 1e-12 0x7f \u00bd \u00b2 \u2167 \u0664\u0662",
    "caf\u00e9 na\u00efve \u00fcber \u00c5ngstr\u00f6m stra\u00dfe \u0130stanbul \u0131",
    "cafe\u0301 nai\u0308ve u\u0308ber Z\u0361a\u0300\u0301\u0302\u0303\u0304lgo",
    "\ufb01ne \uff46\uff55\uff4c\uff4c \u2460 \u2122 \u212b \u01c6",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 "
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e7\U0001f1f7 \u2764\ufe0f 1\ufe0f\u20e3",
    "\u8fd9\u90e8\u7535\u5f71\u975e\u5e38\u597d\u770b\u3002",
    "\u3053\u306e\u6620\u753b\u306f\u6700\u9ad8\u3067\u3059\u3002\u30ab\u30bf\u30ab\u30ca \uff76\uff85",
    "\uc774 \uc601\ud654\ub294 \uc815\ub9d0 \uc88b\ub2e4 \u1112\u1161\u11ab",
    "\U00020000\U0002a6d6 \U0001d54f \U00010348",
    "\u0647\u0630\u0627 \u0627\u0644\u0641\u064a\u0644\u0645 \u0631\u0627\u0626\u0639 \u05e9\u05dc\u05d5\u05dd",
    "\u202eright to left override\u202c \u2066isolate\u2069 \u200f",
    "\u092f\u0939 \u092b\u093f\u0932\u094d\u092e \u0e20\u0e32\u0e1e\u0e22\u0e19\u0e15\u0e23\u0e4c",
    "\u10d9\u10d8\u10dc\u10dd",
    "\u042d\u0442\u043e\u0442 \u0444\u0438\u043b\u044c\u043c \u03b1\u03b2\u03b3",
    "mixed \u4e2d\u6587 \u0639\u0631\u0628\u064a",
    "nul\x00in the middle\x00",
    "\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f\x80\x9f control",
    "soft\u00adhyphen zero\u200bwidth\u200cjoin\u200der word\u2060joiner \ufffd \ufffe",
    "private \ue000 \U000f0000 \U0010fffd",
    "[CLS] [SEP] [PAD] [UNK] [MASK] <s> </s> <pad> <unk> <mask> <|endoftext|>",
    "##suffix ##s \u2581piece \u0120byte \u010a",
    "wordwithoutanend" * 40,
    "x" * 300,
    "many short words " * 400,
    "trailing space ",
    " leading space",
    "two  spaces   and\ttabs\tand\nlines\r\nand\u2028separators\u2029",
)
"""Texts that tokenizers are known to disagree on."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model directory, without padding or truncation; never touches the network.

    Raises:
        ModelError: there is none, it cannot be read, or it is not backed by a `tokenizer.json`-style tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        # Without this, transformers 5 would make an empty tokenizer of the configuration's kind.
        raise ModelError(f"{directory}: found no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}.")
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelError(
                f"{directory}: its tokenizer could not be loaded ({_first_line(error)}). Expected {TOKENIZER_FILE}, "
                "or the vocabulary files of a tokenizer that transformers converts. Save it again."
            ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{directory}: found the tokenizer class {type(tokenizer).__name__}, which has no {TOKENIZER_FILE}. "
            "Expected one backed by the tokenizers library: every runtime reads that file."
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{directory}: its tokenizer holds special tokens only. Expected a vocabulary: save it again.")
    reset_tokenizer(tokenizer)
    return tokenizer


def reset_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Removes padding and truncation from the tokenizer's backend, in place (a call with either leaves them there)."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()


def load_bare_tokenizer(file: Path, max_length: int | None = None) -> Tokenizer:
    """Returns the tokenizer in `tokenizer.json` as an app would load it, truncating to `max_length` tokens.

    Raises:
        ModelError: the file is missing or not a tokenizer.
    """
    from tokenizers import Tokenizer

    if not file.is_file():
        raise ModelError(f"{file}: missing; expected the tokenizer that was saved with the model.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise ModelError(f"{file}: not a tokenizer ({_first_line(error)}). Export the model again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`; loading them gives an equal tokenizer.

    Where the tokenizer's class would rebuild another one from the file (transformers' classes for one architecture
    ignore parts of it), the configuration names the generic class instead, which takes the file as it is.

    Raises:
        ModelError: neither class loads an equal tokenizer from the files.
    """
    reset_tokenizer(tokenizer)
    with quiet_transformers():
        tokenizer.save_pretrained(directory)
    tokenizer.backend_tokenizer.save(str(directory / TOKENIZER_FILE), pretty=False)
    _edit_config(directory, dict.fromkeys(_TRANSIENT_SETTINGS))
    if _round_trips(tokenizer, directory):
        return
    _edit_config(directory, {"tokenizer_class": "PreTrainedTokenizerFast"})
    if not _round_trips(tokenizer, directory):
        raise ModelError(
            f"{directory / TOKENIZER_FILE}: loads as another tokenizer than the one that was saved. "
            "Expected an equal one: a tokenizer that the tokenizers library cannot express is not supported."
        )


def tokenizer_vectors(
    tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int
) -> list[TokenizerVector]:
    """Returns each text with its token ids, special tokens included, truncated to `max_length`.

    Takes a transformers tokenizer or the bare one; both must give the same vectors.
    """
    return [TokenizerVector(text=text, input_ids=_encode_one(tokenizer, text, max_length)) for text in texts]


def _encode_one(tokenizer: PreTrainedTokenizerBase | Tokenizer, text: str, max_length: int) -> list[int]:
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        tokenizer.enable_truncation(max_length)
        return list(tokenizer.encode(text).ids)
    return list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])


def _round_trips(tokenizer: PreTrainedTokenizerBase, directory: Path) -> bool:
    try:
        loaded = load_tokenizer(directory)
    except ModelError:
        return False
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    return bool(saved == json.loads(loaded.backend_tokenizer.to_str()))


def _edit_config(directory: Path, changes: dict[str, str | None]) -> None:
    """Sets keys of `tokenizer_config.json`, removes those that are None, and sorts them all."""
    file = directory / TOKENIZER_CONFIG_FILE
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    config = {key: value for key, value in sorted(config.items()) if value is not None or key not in changes}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
