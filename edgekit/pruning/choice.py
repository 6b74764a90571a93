"""Chooses what a student keeps, by measuring the model and counting the tokens of the data.

It reads data and reports progress; how layers are ranked and tokens chosen is in `layers.py` and `vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from edgekit.contract import StageContext
from edgekit.data.conversations import encode_documents, template_token_ids
from edgekit.data.documents import words_of
from edgekit.data.prepared import PreparedData
from edgekit.data.preprocessing import encode, length_buckets, pad
from edgekit.errors import UsageError
from edgekit.events import Event, track
from edgekit.models.source import LoadedModel
from edgekit.models.structure import find_layers
from edgekit.models.tokenizer import NASTY_TEXTS
from edgekit.pruning.cut import Cut, require_same_tokens
from edgekit.pruning.embeddings import token_ids_named_by
from edgekit.pruning.feed_forward import Neurons, check_size, choose_neurons, find_feed_forwards, measure_neurons
from edgekit.pruning.importance import measure_importance
from edgekit.pruning.layers import check_count, check_indices, choose_by_influence, choose_uniformly, cut_layers
from edgekit.pruning.positions import require_positions
from edgekit.pruning.vocabulary import Counts, choose_tokens, count_tokens, coverage, read_vocabulary, trim_tokenizer

if TYPE_CHECKING:
    from edgekit.pruning.stage import PruneConfig

_STAGE = "prune"
_CHUNK = 1000
_CALIBRATED = "train"
_BATCH = 32
# A language model's rows may be long: so many tokens at once, padding included.
_BATCH_TOKENS = 8192
_CHECKED_TEXTS = 500


@dataclass(frozen=True)
class Choice:
    """What to keep, and why."""

    cut: Cut
    """Layers, neurons, tokens and positions to keep."""
    tokenizer: PreTrainedTokenizerBase
    """The student's tokenizer."""
    influence: tuple[float, ...] | None
    """Block influence of each layer of the larger model, where it was measured."""
    coverage: dict[str, float]
    """Split to the share of its tokens that are kept; empty where the vocabulary is whole."""


def choose(loaded: LoadedModel, data: PreparedData | None, config: PruneConfig, context: StageContext) -> Choice:
    """Returns what a student of `loaded` keeps; `data` may be missing where nothing is measured or counted.

    Raises:
        UsageError: a number is out of range for this model.
        DataError: a split is missing.
        UnsupportedError: the model or its tokenizer cannot be cut so.
    """
    if config.max_positions is not None:
        _require_room(loaded, config.max_positions)
    layers, influence = _choose_layers(loaded, data, config, context)
    token_ids, tokenizer, shares = None, loaded.tokenizer, dict[str, float]()
    if data is not None and config.trims_vocabulary:
        token_ids, tokenizer, shares = _choose_vocabulary(loaded, data, config, context)
    if config.max_positions is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_positions)
    neurons = _choose_neurons(loaded, data, layers, config, context)
    return Choice(Cut(layers, token_ids, config.max_positions, neurons), tokenizer, influence, shares)


def _choose_layers(
    loaded: LoadedModel, data: PreparedData | None, config: PruneConfig, context: StageContext
) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Returns the indices to keep (None: all) and each layer's block influence (None: not measured)."""
    if config.keep_layers is not None:
        check_indices(config.keep_layers, find_layers(loaded.model))
        return tuple(sorted(config.keep_layers)), None
    if config.layers is None:
        return None, None
    stack = find_layers(loaded.model)
    check_count(config.layers, stack)
    if data is None or config.choose == "uniform":
        return choose_uniformly(config.layers, stack), None
    batches = calibration_batches(loaded, data, config.calibration_rows, context, "layers")
    influence = measure_importance(loaded.model, batches).block_influence
    return choose_by_influence(config.layers, stack, influence), influence


def _choose_neurons(
    loaded: LoadedModel,
    data: PreparedData | None,
    layers: tuple[int, ...] | None,
    config: PruneConfig,
    context: StageContext,
) -> Neurons | None:
    """Returns the neurons to keep in each kept layer, measured with the other layers gone; None: all."""
    if config.intermediate_size is None or data is None:
        return None
    model = loaded.model if layers is None else cut_layers(loaded.model, layers)
    check_size(config.intermediate_size, find_feed_forwards(model))
    batches = calibration_batches(loaded, data, config.calibration_rows, context, "neurons")
    return choose_neurons(measure_neurons(model, batches), config.intermediate_size)


def _choose_vocabulary(
    loaded: LoadedModel, data: PreparedData, config: PruneConfig, context: StageContext
) -> tuple[tuple[int, ...], PreTrainedTokenizerBase, dict[str, float]]:
    """Returns the ids to keep, the smaller tokenizer, and the share of each split's tokens that are kept."""
    needed = token_ids_named_by(loaded.model) | template_token_ids(loaded.tokenizer)
    vocabulary = read_vocabulary(loaded.tokenizer, needed)
    names = config.splits_counted or [name for name in ("train", "unlabelled") if name in data.rows]
    counts = _count(data, names, loaded, vocabulary.size, context)
    kept = choose_tokens(vocabulary, counts, size=config.vocabulary_size, min_count=config.min_count or 1)
    trimmed = trim_tokenizer(loaded.tokenizer, vocabulary, kept)
    texts = [text for name in names for text in _first_texts(data, name)]
    require_same_tokens(loaded.tokenizer, trimmed, kept, [*texts, *NASTY_TEXTS])
    shares = {name: coverage(count, kept) for name, count in zip(names, counts, strict=True)}
    return kept, trimmed, shares


def _count(data: PreparedData, names: list[str], loaded: LoadedModel, size: int, context: StageContext) -> list[Counts]:
    total = sum(data.rows.get(name, 0) for name in names)
    done = 0
    counts: list[Counts] = []
    for name in names:
        count = np.zeros(size, dtype=np.int64)
        for rows, part in _counted(data, name, loaded, size):
            count += part
            done += rows
            context.events(
                Event("progress", stage=_STAGE, text="counting tokens", completed=done, total=total, unit="texts")
            )
        counts.append(count)
    return counts


def _counted(data: PreparedData, name: str, loaded: LoadedModel, size: int) -> Iterator[tuple[int, Counts]]:
    """Yields a number of rows and how often each id occurs in them: of a language model's documents, everywhere."""
    if name in data.forms:
        encoded = encode_documents(data.documents(name), loaded.tokenizer, f"split '{name}'")
        while chunk := list(islice(encoded, _CHUNK)):
            ids = np.asarray([token_id for document in chunk for token_id in document.ids], dtype=np.int64)
            yield len(chunk), np.bincount(ids, minlength=size)
        return
    split = data.split(name)
    for start in range(0, len(split), _CHUNK):
        texts = split.texts[start : start + _CHUNK]
        yield len(texts), count_tokens(texts, loaded.tokenizer, loaded.task.max_length, size)


def _first_texts(data: PreparedData, name: str) -> list[str]:
    if name in data.forms:
        return [words_of(document) for document in islice(data.documents(name), _CHECKED_TEXTS)]
    return data.split(name).texts[:_CHECKED_TEXTS]


def calibration_batches(
    loaded: LoadedModel, data: PreparedData, rows: int, context: StageContext, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields `input_ids` and `attention_mask` (B, T) of `rows` rows of `train` drawn with the stage's seed."""
    generator = np.random.default_rng(context.seed)
    total = data.rows.get(_CALIBRATED, 0)
    chosen = sorted(generator.choice(total, size=min(rows, total), replace=False).tolist())
    ids = _calibration_ids(loaded, data, chosen)
    longest = max((len(row) for row in ids), default=1)
    batch_size = min(_BATCH, max(1, _BATCH_TOKENS // longest)) if _CALIBRATED in data.forms else _BATCH
    batches = length_buckets([len(row) for row in ids], batch_size)
    pad_id = loaded.tokenizer.pad_token_id or 0
    for batch in track(
        batches, context.events, stage=_STAGE, text=f"measuring {what}", total=len(batches), unit="batches"
    ):
        input_ids, attention_mask = pad([ids[row] for row in batch], pad_id)
        yield torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def _calibration_ids(loaded: LoadedModel, data: PreparedData, chosen: list[int]) -> list[list[int]]:
    """Returns the tokens of these rows, each cut to what the model reads at once."""
    where = f"split '{_CALIBRATED}'"
    if _CALIBRATED not in data.forms:
        split = data.split(_CALIBRATED)
        texts, places = [split.texts[row] for row in chosen], [f"{where}, {split.row_name(row)}" for row in chosen]
        return encode(texts, loaded.tokenizer, loaded.task.max_length, where=places)
    wanted = set(chosen)
    documents = ((row, document) for row, document in enumerate(data.documents(_CALIBRATED)) if row in wanted)
    # One at a time, so that an error names the row in the split.
    encoded = (next(encode_documents([document], loaded.tokenizer, where, first=row)) for row, document in documents)
    return [document.ids[: loaded.task.max_length] for document in encoded]


def _require_room(loaded: LoadedModel, positions: int) -> None:
    require_positions(loaded.model)
    if positions < loaded.task.max_length:
        raise UsageError(
            f"max_positions: found {positions}, expected at least {loaded.task.max_length}, the tokens that a text of "
            "this task may have (task.max_length)."
        )
