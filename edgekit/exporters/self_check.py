"""Runs a decoder's file once in every way that it will be driven, before it is published, against torch.

A decoder that computes something else than its model is not written at all: what the exporter misunderstood shows here,
on random tokens. How near the file is on real text is the matter of the `check` stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.errors import ParityError
from edgekit.exporters.sensitivity import disturbed
from edgekit.models.quantized import QuantizedLinear
from edgekit.runtimes.generation import GenerationConfig, GenerationSession
from edgekit.runtimes.onnxruntime_generation import LOGITS_TO_KEEP, OnnxGenerationSession
from edgekit.runtimes.onnxruntime_runtime import open_file, session_options
from edgekit.runtimes.protocol import SessionConfig
from edgekit.runtimes.torch_generation import TorchGenerationSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Logits = NDArray[np.float32]

# Tokens of the prompt, of a second chunk, single ones, and padding of the batch; fewer where the context is short.
_PROMPT, _CHUNK, _STEPS, _PADDING = 24, 5, 3, 3
# Float sums in another order: largest difference, as a share of the largest logit.
_EXACT = 1e-3
# Activations rounded to 8 bits fall to either side: mean difference, as a share of the spread of the logits.
_ROUNDED = 0.1
# A model that a few bits have spoilt answers to float noise by more: this many times its own answer is allowed to the
# file as well, up to a difference that unrelated logits (about 1.1) stay far above.
_OWN_FACTOR, _MOST = 4, 0.5


@dataclass(frozen=True)
class Driving:
    """One way of running a decoder, and what it gave."""

    way: str
    expected: Logits
    """(rows, V), by torch."""
    found: Logits
    """(rows, V), by the file."""

    def difference(self, *, rounded: bool) -> float:
        """Returns the difference as a share of what the logits are: see `_EXACT` and `_ROUNDED`."""
        error = np.abs(self.found.astype(np.float64) - self.expected)
        if rounded:
            return float(error.mean() / max(float(self.expected.std()), 1e-6))
        return float(error.max() / max(float(np.abs(self.expected).max()), 1.0))


def self_check(file: Path, network: PreTrainedModel, context_length: int, *, left_padding: bool) -> None:
    """Does nothing when `file` computes what `network` does.

    Raises:
        ParityError: it does not; names the way of driving.
    """
    rounded = any(
        isinstance(module, QuantizedLinear) and module.scheme.activations == "dynamic-int8"
        for module in network.modules()
    )
    limit = _ROUNDED if rounded else _EXACT
    for driving in drive(file, network, context_length, left_padding=left_padding):
        difference = driving.difference(rounded=rounded)
        if rounded and difference > limit:
            limit = max(limit, _limit_of_own(network, context_length))
        if not difference <= limit:  # NaN is no number below the limit
            raise ParityError(
                f"The exported decoder, {driving.way}, differs from {type(network).__name__} by {difference:.3g} of "
                f"its logits, expected at most {limit:g}. Nothing was written: the exporter does not understand this "
                "model."
            )


def _limit_of_own(network: PreTrainedModel, context_length: int) -> float:
    """Returns the difference that a file may have from `network` that answers strongly to float noise."""
    ids, prompt = _random_ids(network, context_length)
    expected = _walk(TorchGenerationSession(network, context_length), ids, prompt)
    with disturbed(network, seed=0):
        found = _walk(TorchGenerationSession(network, context_length), ids, prompt)
    own = Driving("in torch, disturbed", expected, found).difference(rounded=True)
    return min(_OWN_FACTOR * own, _MOST)


def _random_ids(network: PreTrainedModel, context_length: int) -> tuple[NDArray[np.int64], int]:
    """Returns random tokens, and how many of them are the prompt."""
    prompt = min(_PROMPT, context_length - _CHUNK - _STEPS)
    ids = np.random.default_rng(0).integers(0, int(network.config.vocab_size), prompt + _CHUNK + _STEPS)
    return ids, prompt


def drive(file: Path, network: PreTrainedModel, context_length: int, *, left_padding: bool) -> list[Driving]:
    """Returns what `file` and `network` give: exact and shared caches, chunks, single tokens, a padded batch."""
    ids, prompt = _random_ids(network, context_length)
    session = open_file(file, session_options(SessionConfig()))
    expected = _walk(TorchGenerationSession(network, context_length), ids, prompt)
    drivings = []
    for way, shared in (("with past tensors of the exact length", False), ("with a shared buffer", True)):
        config = GenerationConfig(context_length=context_length, shared_cache=shared)
        found = _walk(OnnxGenerationSession(session, config), ids, prompt)
        drivings.append(Driving(way, expected, found))
    if left_padding:
        drivings.append(_padded_batch(session, network, ids[:prompt]))
    return drivings


def _walk(session: GenerationSession, ids: NDArray[np.int64], prompt: int) -> Logits:
    """Returns the logits (rows, V) after a prompt, a chunk and single tokens."""
    rows = [session.prefill(ids[:prompt]), session.prefill(ids[prompt : prompt + _CHUNK])]
    rows += [session.step(int(token)) for token in ids[prompt + _CHUNK :]]
    session.reset()
    rows.append(session.prefill(ids[:1]))
    return np.stack(rows)


def _padded_batch(session: Any, network: PreTrainedModel, ids: NDArray[np.int64]) -> Driving:
    """Runs a text beside itself padded on the left, all logits."""
    padded = np.stack([ids, np.concatenate((ids[:_PADDING], ids[:-_PADDING]))])
    mask = np.ones_like(padded)
    mask[1, :_PADDING] = 0
    positions = np.clip(mask.cumsum(axis=1) - 1, 0, None)
    with torch.inference_mode():
        inputs = {"input_ids": padded, "attention_mask": mask, "position_ids": positions}
        expected = network(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.float().numpy()
    feeds = {"input_ids": padded, "attention_mask": mask, LOGITS_TO_KEEP: np.array(0)}
    for entry in session.get_inputs():
        if entry.name.startswith("past_key_values."):
            feeds[entry.name] = np.zeros((2, entry.shape[1], 0, entry.shape[3]), dtype=np.float32)
    found = session.run(["logits"], feeds)[0]
    kept = mask.astype(bool)
    return Driving("in a batch padded on the left", expected[kept], found[kept])
