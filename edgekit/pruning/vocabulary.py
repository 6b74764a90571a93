"""Chooses which tokens of a tokenizer to keep, and makes the smaller tokenizer.

Kept tokens keep their order, so new ids rise with old ones. Any text still has tokens: see the three kinds,
`wordpiece.py`, `byte_pair_encoding.py` and `unigram.py`. The model's table is cut in `embeddings.py`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from edgekit.errors import UnsupportedError, UsageError
from edgekit.pruning.byte_pair_encoding import read_byte_pair_encoding
from edgekit.pruning.tokenizer_model import JsonObject, TokenizerModel
from edgekit.pruning.unigram import read_unigram
from edgekit.pruning.wordpiece import read_wordpiece

Counts = NDArray[np.int64]

KINDS: dict[str, Callable[[JsonObject, frozenset[str]], TokenizerModel]] = {
    "WordPiece": read_wordpiece,
    "BPE": read_byte_pair_encoding,
    "Unigram": read_unigram,
}

# Tokens average about 4 characters with the space, so this much of a text fills the model's window.
_CHARACTERS_A_TOKEN = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens, and which of them must stay."""

    document: JsonObject
    """The whole `tokenizer.json`."""
    model: TokenizerModel
    ids: Mapping[str, int]
    """Every token, added ones included, to its id."""
    required: frozenset[int]
    """Ids that must stay: single characters and bytes, special and added tokens, unknown."""

    @property
    def size(self) -> int:
        """Number of ids: one more than the largest."""
        return max(self.ids.values()) + 1

    def with_parts(self, token_ids: Iterable[int]) -> set[int]:
        """Returns `token_ids` and all that must be kept with them."""
        return {part for token_id in token_ids for part in (token_id, *self.model.parts(token_id))}


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, also_required: Iterable[int] = ()) -> Vocabulary:
    """Returns the vocabulary of a tokenizer; ids in `also_required` that it has must stay as well.

    Raises:
        UnsupportedError: a kind of tokenizer that cannot be trimmed; says why.
    """
    document: JsonObject = json.loads(tokenizer.backend_tokenizer.to_str())
    model: JsonObject = document["model"]
    kind = str(model.get("type"))
    if kind not in KINDS:
        raise UnsupportedError(
            f"vocabulary: found a tokenizer of kind '{kind}', expected one of {', '.join(KINDS)}. "
            "Leave the vocabulary as it is."
        )
    added: dict[str, int] = {token["content"]: token["id"] for token in document["added_tokens"]}
    read = KINDS[kind](model, frozenset(added))
    ids = {**read.tokens, **added}
    known = set(ids.values())
    required = read.required | set(added.values()) | (known & set(also_required))
    vocabulary = Vocabulary(document, read, ids, required)
    return Vocabulary(document, read, ids, frozenset(vocabulary.with_parts(required)))


def count_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, size: int) -> Counts:
    """Returns how often each id below `size` occurs in what a model sees of `texts`, `(size,)` int64.

    Of each text, the first `6 * max_length` characters are read and the first `max_length` tokens counted, special
    tokens left out.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    room = max_length - tokenizer.num_special_tokens_to_add()
    shortened = [text[: _CHARACTERS_A_TOKEN * max_length] for text in texts]
    encodings = backend.encode_batch_fast(shortened, add_special_tokens=False)
    ids = [token_id for encoding in encodings for token_id in encoding.ids[:room]]
    return np.bincount(np.asarray(ids, dtype=np.int64), minlength=size)


def choose_tokens(
    vocabulary: Vocabulary, counts: Sequence[Counts], *, size: int | None = None, min_count: int = 1
) -> tuple[int, ...]:
    """Returns the ids to keep, ascending: those that must stay and the most frequent of the others.

    Several corpora count alike, however long each is: tokens are ranked by the mean of their shares. A token comes
    with its parts, or, where these do not fit any more, not at all.

    Args:
        vocabulary: what to choose from.
        counts: for each corpus, how often each id occurs.
        size: tokens to keep at most; None for no limit.
        min_count: occurrences, over all corpora, below which a token is dropped.

    Raises:
        UsageError: `size` is less than what must stay, or more than there is.
    """
    kept = set(vocabulary.required)
    if size is not None and not len(kept) <= size <= len(set(vocabulary.ids.values())):
        raise UsageError(
            f"vocabulary_size: found {size}, expected {len(kept)} (single characters, bytes, special and added tokens, "
            f"which any text may need) to {len(set(vocabulary.ids.values()))} (all tokens of the model)."
        )
    total = np.sum(counts, axis=0)
    share = np.sum([count / max(count.sum(), 1) for count in counts], axis=0)
    known = np.asarray(sorted(set(vocabulary.ids.values()) - kept), dtype=np.int64)
    for token_id in known[np.lexsort((known, -share[known]))].tolist():
        if total[token_id] < min_count or token_id in kept:
            continue
        if len(kept) == size:
            break
        wanted = vocabulary.with_parts([token_id]) - kept
        if size is None or len(kept) + len(wanted) <= size:
            kept |= wanted
    return tuple(sorted(kept))


def coverage(counts: Counts, kept: Sequence[int]) -> float:
    """Returns the share of a corpus's tokens that are kept, 0 to 1; 1 for an empty corpus."""
    total = int(counts.sum())
    return float(counts[list(kept)].sum() / total) if total else 1.0


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, kept: Sequence[int]
) -> PreTrainedTokenizerBase:
    """Returns a tokenizer of the same class with the tokens `kept` only, numbered from 0 in their old order.

    Raises:
        UnsupportedError: a token that must stay is missing, or the tokenizers library numbers them otherwise.
    """
    missing = vocabulary.with_parts({*vocabulary.required, *kept}) - set(kept)
    if missing:
        names = {token_id: token for token, token_id in vocabulary.ids.items()}
        raise UnsupportedError(
            f"vocabulary: {len(missing)} tokens that must stay are not kept, first '{names[min(missing)]}'. Keep them."
        )
    new_ids = {old: new for new, old in enumerate(sorted(kept))}
    document = {**vocabulary.document, "model": vocabulary.model.cut(new_ids)}
    document["added_tokens"] = [{**token, "id": new_ids[token["id"]]} for token in document["added_tokens"]]
    document["post_processor"] = _renumber_processor(document["post_processor"], new_ids)
    if document["padding"] is not None:
        document["padding"] = {**document["padding"], "pad_id": new_ids[document["padding"]["pad_id"]]}
    backend = Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
    expected = {token: new_ids[token_id] for token, token_id in vocabulary.ids.items() if token_id in new_ids}
    if backend.get_vocab(with_added_tokens=True) != expected:
        raise UnsupportedError(
            "vocabulary: the tokenizers library would number this tokenizer's tokens otherwise once some are dropped. "
            "Leave the vocabulary as it is."
        )
    trimmed = copy.deepcopy(tokenizer)
    trimmed._tokenizer = backend  # there is no public way, and building the class anew would lose its settings
    if "unk_id" in trimmed.init_kwargs:  # of DeBERTa-v2, saved with its settings
        trimmed.init_kwargs["unk_id"] = document["model"].get("unk_id")
    return trimmed


def _renumber_processor(processor: JsonObject | None, new_ids: Mapping[int, int]) -> JsonObject | None:
    """Returns a post-processor with new ids: a template, the fixed ones of BERT and RoBERTa, or a sequence."""
    if processor is None:
        return None
    changed = dict(processor)
    for name in ("sep", "cls"):
        if name in processor:
            token, token_id = processor[name]
            changed[name] = [token, new_ids[token_id]]
    if "special_tokens" in processor:
        changed["special_tokens"] = {
            name: {**token, "ids": [new_ids[token_id] for token_id in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    if "processors" in processor:
        changed["processors"] = [_renumber_processor(part, new_ids) for part in processor["processors"]]
    return changed
