"""Lets a language model write: the student for on-policy distillation, the teacher for sequence-level distillation.

    for written in write_sequences(model, prompts, WritingConfig(max_new_tokens=64)): ...

On-policy (GKD, Agarwal et al., arXiv:2306.13649): the student continues prompts and the teacher's distribution at each
token it wrote is what it learns. Sequence-level (Kim and Rush, arXiv:1606.07947): the teacher's text is what it learns.
It knows token ids, not text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.distillation.config import WritingConfig
from edgekit.distillation.losses import IGNORED
from edgekit.distillation.precision import autocast
from edgekit.distillation.randomness import generator
from edgekit.errors import DataError, TrainingError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DRAWS, _CHOICE = 11, 12  # keep these random numbers apart from each other and from the trainer's
_CROWDED = 0.75
"""Where no more than this share of the rows still write, the others are dropped: copying the cache costs a little."""


@dataclass(frozen=True)
class WrittenSequence:
    """A prompt with what a model made of it."""

    token_ids: NDArray[np.int64]
    """(T), the prompt and what follows it, an end token included."""
    loss_mask: NDArray[np.bool_]
    """(T), True at the tokens that were written."""
    finished: bool
    """True when the model ended the text, False when it was cut."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(T), at each position the token that follows where that was written, -100 elsewhere."""
        labels = np.full(len(self.token_ids), IGNORED, dtype=np.int64)
        labels[:-1] = np.where(self.loss_mask[1:], self.token_ids[1:], IGNORED)
        return labels


def write_sequences(  # noqa: PLR0913 - the last three decide what is drawn and where it ends
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: WritingConfig,
    *,
    end_ids: Sequence[int] = (),
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Iterator[WrittenSequence]:
    """Yields each prompt with its continuation, in order; batches of prompts of like length waste the least.

    What a prompt's continuation draws depends on the seed and the prompt's number alone. The model is left in the mode
    in which it was, and no global generator is touched.

    Args:
        model: a causal language model.
        prompts: token ids of each, without padding.
        config: how to write.
        end_ids: tokens that end a text.
        seed: decides what is drawn.
        numbers: number of each prompt, which decides it as well; none: its place in `prompts`.

    Raises:
        DataError: a prompt is empty.
        UsageError: a prompt and its continuation may be longer than the model's context.
        TrainingError: a logit is not finite.
    """
    _check(model, prompts, config)
    numbers = range(len(prompts)) if numbers is None else numbers
    for start in range(0, len(prompts), config.batch_size):
        batch = prompts[start : start + config.batch_size]
        draws = np.stack(
            [generator(seed, _DRAWS, number).random(config.max_new_tokens) for number in numbers[start:][: len(batch)]]
        )
        with _evaluation(model), torch.no_grad(), autocast(config.precision, model.device):
            written = _continue(model, batch, draws, config, frozenset(end_ids))
        for prompt, token_ids in zip(batch, written, strict=True):
            yield WrittenSequence(
                np.array([*prompt, *token_ids], dtype=np.int64),
                np.arange(len(prompt) + len(token_ids)) >= len(prompt),
                token_ids[-1] in end_ids,
            )


def student_writes(share: float, seed: int, step: int) -> bool:
    """Returns whether step `step` learns from what the student writes: GKD's lambda is the `share` of such steps."""
    return bool(generator(seed, _CHOICE, step).random() < share)


def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draws: NDArray[np.float64],
    config: WritingConfig,
    end_ids: frozenset[int],
) -> list[list[int]]:
    """Returns the tokens written after each prompt; prompts are padded on the left, so all continue at one place."""
    width = max(len(prompt) for prompt in prompts)
    device = model.device
    # what padding holds does not matter, it is masked
    token_ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    uniforms = torch.from_numpy(draws).to(device)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    written: list[list[int]] = [[] for _ in prompts]
    present = torch.arange(len(prompts), device=device)  # rows that are still run, finished ones among them
    open_rows = set(range(len(prompts)))
    cache: Any = None
    for step in range(config.max_new_tokens):
        outputs = model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        cache = outputs.past_key_values
        chosen = _choose(outputs.logits[:, -1].float(), uniforms[present, step], config)  # (rows that are run)
        for row, token in zip(present.tolist(), chosen.tolist(), strict=True):
            if row in open_rows:
                written[row].append(token)
                if token in end_ids:
                    open_rows.remove(row)
        if not open_rows:
            break
        token_ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(present), 1)], dim=1)
        if len(open_rows) <= _CROWDED * len(present):
            kept = torch.tensor(
                [place for place, row in enumerate(present.tolist()) if row in open_rows], device=device
            )
            cache.reorder_cache(kept)  # every kind of layer has it, recurrent ones too
            present, token_ids, positions, mask = present[kept], token_ids[kept], positions[kept], mask[kept]
    return written


def _choose(logits: Tensor, uniforms: Tensor, config: WritingConfig) -> Tensor:
    """Returns the next token of each row, (B), from logits (B, V) and one number in [0, 1) a row."""
    # a sum is many times faster than looking at each; one that is too large for float32 is looked at again
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise TrainingError(
            "writing: the model's logits are not finite numbers. Use precision float32, or check the weights."
        )
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    p = torch.softmax(logits.double() / config.temperature, dim=-1)
    order: Tensor | None = None
    if config.top_p < 1:
        p, order = p.sort(dim=-1, descending=True, stable=True)
        before = p.cumsum(dim=-1) - p
        p = p.masked_fill(before >= config.top_p, 0.0)  # the first token always stays
    cumulative = p.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    place = place.clamp_(max=p.shape[1] - 1)
    return (place if order is None else order.gather(1, place))[:, 0]


def _check(model: PreTrainedModel, prompts: Sequence[Sequence[int]], config: WritingConfig) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"prompt {index} (counted from 0): found no tokens, expected at least one.")
        if context is not None and len(prompt) + config.max_new_tokens > context:
            raise UsageError(
                f"prompt {index} (counted from 0): found {len(prompt)} tokens and max_new_tokens "
                f"{config.max_new_tokens}, expected at most {context} together, the model's context. Shorten the "
                "prompt or lower max_new_tokens."
            )


@contextmanager
def _evaluation(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
