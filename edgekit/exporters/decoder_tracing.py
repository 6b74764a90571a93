"""Traces a decoder whose parts were substituted: one step with past keys and values, any batch, length and past.

Inputs are `input_ids` (B, S), `attention_mask` (B, T) over past and present, and `past_key_values.N.key` and `.value`
(B, M, P, D); outputs are `logits` (B, S, V) and `present.N.key` and `.value`, as onnxruntime-genai, optimum and
transformers.js name them. It knows nothing of what the operators are lowered to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.attention_survey import Rotary, Survey
from edgekit.exporters.decoder_substitution import DecoderEmitter, Step, substituted_decoder
from edgekit.exporters.passing_cache import PassingCache
from edgekit.exporters.tracing import quiet_tracing, root_cause

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = "logits"
FAR_BELOW = -1e9
"""Added to the score of padding: finite, so that a row of padding alone stays finite too."""

_LIMIT = 1 << 20
# transformers.js fills in `batch_size` by its name, and 0 for any other.
_DIMENSIONS = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length")
# The sizes of the example; all differ, so that none is taken for another.
_BATCH, _LENGTH, _PAST, _TOTAL = 2, 3, 5, 8


def past_names(layers: int) -> list[str]:
    """Returns the names of the inputs that hold keys and values, layer by layer."""
    return [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def present_names(layers: int) -> list[str]:
    """Returns the names of the outputs that hold keys and values, layer by layer."""
    return [f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def trace_decoder(
    model: PreTrainedModel, survey: Survey, *, positions: int, left_padding: bool, opset: int
) -> ir.Model:
    """Returns the graph of one step of `model`, with placeholders.

    Raises:
        UnsupportedError: the model cannot be traced with dynamic sizes.
    """
    names = past_names(len(survey.layers))
    dims = {name: torch.export.Dim(name, max=_LIMIT) for name in _DIMENSIONS}
    past_shape = {0: dims["batch_size"], 2: dims["past_sequence_length"]}
    shapes = (
        {0: dims["batch_size"], 1: dims["sequence_length"]},
        {0: dims["batch_size"], 1: dims["total_sequence_length"]},
    )
    with substituted_decoder(model, survey, positions) as emitter, quiet_tracing():
        step = _OneStep(model, emitter, survey, positions, left_padding=left_padding)
        try:
            program = torch.onnx.export(
                step.eval(),
                _examples(survey),
                dynamo=True,
                opset_version=opset,
                input_names=["input_ids", "attention_mask", *names],
                output_names=[LOGITS, *present_names(len(survey.layers))],
                dynamic_shapes=(*shapes, (past_shape,) * len(names)),
                verbose=False,
            )
        except UnsupportedError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"{type(model).__name__}: cannot be traced with dynamic batch, length and past ({root_cause(error)})."
            ) from error
    if program is None:
        raise UnsupportedError(f"{type(model).__name__}: tracing gave no graph.")
    return program.model


def _examples(survey: Survey) -> tuple[Tensor, ...]:
    past = [
        torch.zeros(_BATCH, facts.key_value_heads, _PAST, facts.head_size) for facts in survey.layers for _ in range(2)
    ]
    return (torch.ones(_BATCH, _LENGTH, dtype=torch.int64), torch.ones(_BATCH, _TOTAL, dtype=torch.int64), *past)


class _OneStep(nn.Module):
    """Takes positional inputs; returns logits and present keys and values."""

    def __init__(
        self, network: PreTrainedModel, emitter: DecoderEmitter, survey: Survey, positions: int, *, left_padding: bool
    ) -> None:
        super().__init__()
        self.network = network
        self._emitter = emitter
        self._layers = len(survey.layers)
        self._left_padding = left_padding
        self._rotaries: list[Rotary] = []
        for facts in survey.layers:
            if facts.rotary is not None and facts.rotary not in self._rotaries:
                self._rotaries.append(facts.rotary)
        for index, rotary in enumerate(self._rotaries):
            for name, table in zip(("cos", "sin"), rotary.source.tables(positions), strict=True):
                self.register_buffer(f"rotary_{index}_{name}", rotary.layout.narrow(table))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Returns logits (B, S, V), then key and value of each layer (B, M, P + S, D)."""
        length, total = input_ids.shape[1], attention_mask.shape[1]
        cache = PassingCache(past[0].shape[2], self._layers)
        self._emitter.step = step = Step(
            past=list(zip(past[::2], past[1::2], strict=True)),
            last_index=_last_index(attention_mask, left_padding=self._left_padding),
            total=torch.scalar_tensor(total, dtype=torch.int32),
            bias=_padding_bias(attention_mask, length) if self._left_padding else None,
            rotary_tables={
                rotary: (self.get_buffer(f"rotary_{index}_cos"), self.get_buffer(f"rotary_{index}_sin"))
                for index, rotary in enumerate(self._rotaries)
            },
            cache=cache,
        )
        logits: Tensor = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=_positions(attention_mask, length),
            past_key_values=cache,
            use_cache=True,
        ).logits
        present: Sequence[Tensor] = [each for layer in range(self._layers) for each in step.present[layer]]
        return (logits, *present)


def _last_index(mask: Tensor, *, left_padding: bool) -> Tensor:
    """Returns where each row's last token stands in the cache, int32 (B,).

    Tokens are kept without gaps behind the padding before the first one. So padding after a prompt, in a batch of
    onnxruntime-genai, is overwritten by the answer.
    """
    last = mask.sum(dim=1) - 1
    if left_padding:
        last = last + _before_text(mask).sum(dim=1)
    return last.to(torch.int32)


def _before_text(mask: Tensor) -> Tensor:
    """Returns which columns are padding before a row's first token, bool (B, T)."""
    return mask.cumsum(dim=1) == 0


def _positions(mask: Tensor, length: int) -> Tensor:
    """Returns the position of each new token among the tokens that are no padding, int64 (B, S)."""
    last = torch.arange(length) + (mask.shape[1] - length)
    return (mask.cumsum(dim=1) - 1).clamp(min=0).index_select(1, last)


def _padding_bias(mask: Tensor, length: int) -> Tensor:
    """Returns what is added to scores, float32 (B, 1, S, T)."""
    bias = _before_text(mask).to(torch.float32) * FAR_BELOW
    return bias[:, None, None, :].expand(-1, 1, length, -1)
