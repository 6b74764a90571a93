"""Cuts a model in every way that was chosen, and checks that what is left still computes the same.

What to cut is chosen elsewhere: `layers.py`, `vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgekit.errors import ModelError, UnsupportedError
from edgekit.models.structure import find_embeddings, find_layers
from edgekit.pruning.embeddings import cut_embeddings
from edgekit.pruning.feed_forward import Neurons, cut_feed_forwards, mask_neurons
from edgekit.pruning.layers import cut_layers, skip_layers
from edgekit.pruning.positions import cut_positions

_CHECK_ROWS = 4
_CHECK_LENGTH = 128
# The operations and numbers are the same, but a matrix library may round otherwise where memory is aligned otherwise.
_TOLERANCE = 1e-4
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Cut:
    """What a student keeps of its teacher; None keeps all."""

    layers: tuple[int, ...] | None = None
    """Indices of layers, ascending."""
    token_ids: tuple[int, ...] | None = None
    """Ids of tokens, ascending."""
    positions: int | None = None
    """Positions of the learned table, from the first on."""
    neurons: Neurons | None = None
    """Feed-forward neurons of each layer that is kept."""


def cut_model(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """Returns the student; `model` stays as it is.

    Raises:
        UsageError: an index or a number is out of range.
        ModelError: model and tokenizer do not fit.
        UnsupportedError: the architecture cannot be cut so.
    """
    student = model
    if cut.token_ids is not None:
        student = cut_embeddings(student, cut.token_ids)
    if cut.layers is not None:
        student = cut_layers(student, cut.layers)
    if cut.neurons is not None:
        student = cut_feed_forwards(student, cut.neurons)
    if cut.positions is not None:
        student = cut_positions(student, cut.positions)
    return student


def require_same_outputs(model: PreTrainedModel, student: PreTrainedModel, cut: Cut, seed: int) -> None:
    """Checks on random kept tokens that the student computes what `model` does without what was dropped.

    Raises:
        ModelError: the outputs of `model` are not finite.
        UnsupportedError: it does not, so the architecture ties its parts together in a way that was not foreseen.
    """
    kept_ids = np.arange(find_embeddings(model).word.rows) if cut.token_ids is None else np.asarray(cut.token_ids)
    new_ids, mask = _random_batch(student, len(kept_ids), seed)
    attention_mask = torch.from_numpy(mask)
    stack = find_layers(model)
    layers = cut.layers if cut.layers is not None else tuple(range(stack.applications))
    owners = range(len(stack.layers)) if stack.shared else layers
    neurons = {} if cut.neurons is None else dict(zip(owners, cut.neurons, strict=True))
    with torch.inference_mode(), skip_layers(model, layers), _masked(model, neurons):
        expected = model(input_ids=torch.from_numpy(kept_ids[new_ids]), attention_mask=attention_mask)[0]
        if cut.token_ids is not None and model.get_output_embeddings() is not None:
            expected = expected[..., torch.from_numpy(kept_ids)]  # a logit for each kept token
    if not bool(torch.isfinite(expected).all()):
        raise ModelError(
            f"model type '{model.config.model_type}': the outputs of the uncut model are not all finite on random "
            "tokens, expected numbers. Its weights are too large, or not numbers: train or import it again."
        )
    with torch.inference_mode():
        found = student(input_ids=torch.from_numpy(new_ids), attention_mask=attention_mask)[0]
    difference = float((expected - found).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()) + _ROUNDING:
        raise UnsupportedError(
            f"model type '{model.config.model_type}': the cut model's outputs differ by {difference:.3g} from those of "
            "the uncut one with the same parts left out; expected equal ones. This architecture ties its parts "
            "together in a way that edgekit does not know: leave layers, neurons, vocabulary or positions as they are."
        )


def _masked(model: PreTrainedModel, neurons: dict[int, tuple[int, ...]]) -> AbstractContextManager[None]:
    return mask_neurons(model, neurons) if neurons else nullcontext()


def _random_batch(student: PreTrainedModel, vocabulary: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns random ids and their mask, (B, T) int64, padded on the right; one row where there is no padding token."""
    generator = np.random.default_rng(seed)
    table = find_embeddings(student).position
    length = _CHECK_LENGTH if table is None else min(_CHECK_LENGTH, table.positions)
    pad_id = student.config.pad_token_id
    ids = generator.integers(vocabulary, size=(1 if pad_id is None else _CHECK_ROWS, length))
    mask = np.ones_like(ids)
    if pad_id is not None:
        lengths = generator.integers(1, length + 1, size=(_CHECK_ROWS, 1))
        lengths[0] = length
        mask = (np.arange(length) < lengths).astype(np.int64)
        ids[ids == pad_id] = (pad_id + 1) % vocabulary
        ids[mask == 0] = pad_id
    return ids, mask


def require_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    trimmed: PreTrainedTokenizerBase,
    kept: Sequence[int],
    texts: Sequence[str],
) -> None:
    """Checks on `texts` that kept tokens are found as before, and that nothing became unknown.

    Raises:
        UnsupportedError: a text whose tokens are all kept has other tokens now, or one has an unknown token more.
    """
    new_ids = {old: new for new, old in enumerate(kept)}
    before = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
    after = trimmed.backend_tokenizer.encode_batch_fast(list(texts))
    for text, old, new in zip(texts, before, after, strict=True):
        expected = [new_ids.get(token_id) for token_id in old.ids]
        changed = None not in expected and expected != new.ids
        became_unknown = new.ids.count(trimmed.unk_token_id) > old.ids.count(tokenizer.unk_token_id)
        if changed or became_unknown:
            raise UnsupportedError(
                f"vocabulary: the smaller tokenizer reads {text[:60]!r} as {_first_tokens(trimmed, new.ids)}, the "
                f"original one as {_first_tokens(tokenizer, old.ids)}. Expected the same tokens where all are kept, "
                "and no new unknown ones. Leave the vocabulary as it is."
            )


def _first_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(ids[:12]))
