"""Before a decoder is traced, swaps its parts for ones that emit the runtime's operators.

Attention becomes `com.microsoft::GroupQueryAttention` with past and present keys and values, and turns query and key
itself where the survey found that it can; root-mean-square norms become placeholders like linears and embeddings. What
stays explicit of a rotary embedding looks its angles up in tables. It knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.attention_survey import Rotary, Survey, registered, replaced_rotary
from edgekit.exporters.passing_cache import PassingCache
from edgekit.exporters.rms_norm import find_rms_norm
from edgekit.exporters.rotary import RotarySource, is_rotary
from edgekit.exporters.substitution import MICROSOFT, Placeholder, placeholder, swapped_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODER_ATTENTION = "edgekit-onnx-decoder"


@dataclass
class Step:
    """What one traced call shares with the attentions inside it."""

    past: Sequence[tuple[Tensor, Tensor]]
    """Keys and values of each layer, (B, M, P, D)."""
    last_index: Tensor
    """int32 (B,): index of each row's last token among past and present."""
    total: Tensor
    """int32 (): tokens of past and present."""
    bias: Tensor | None
    """float32 (B, 1, S, T): added to scores, far below zero on padding; None where rows are padded on the right."""
    rotary_tables: dict[Rotary, tuple[Tensor, Tensor]]
    """Narrow cos and sin, each (positions, R / 2)."""
    cache: PassingCache
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Filled by the attentions: keys and values of each layer, (B, M, P + S, D)."""
    turned: int = 0
    """Calls so far that turn query and key."""


class DecoderEmitter:
    """Emits the operators of one model; `step` is set before each call of the model."""

    def __init__(self, survey: Survey) -> None:
        """`survey` says what each attention computes."""
        self._survey = survey
        self.step: Step | None = None

    @property
    def current(self) -> Step:
        """The step that is being traced."""
        if self.step is None:
            raise UnsupportedError("onnx: the attention ran before a step began.")
        return self.step

    def mask(self, batch_size: int, q_length: int, kv_length: int, **_: Any) -> Tensor:
        """Returns a mask that nothing reads: the operator knows causality and windows, the step knows padding."""
        return torch.ones((), dtype=torch.bool)

    def turn(self, original: Callable[..., Any], query: Tensor, key: Tensor, *rest: Any, **named: Any) -> Any:
        """Leaves query and key to the attention where it turns them itself, else turns them as the model does."""
        step = self.current
        fused = self._survey.rotary_calls[step.turned] is not None
        step.turned += 1
        return (query, key) if fused else original(query, key, *rest, **named)

    def attention(  # noqa: PLR0913 - the signature that transformers calls
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Emits GroupQueryAttention: query (B, N, S, D), key and value (B, M, S, D) -> (B, S, N, D)."""
        step = self.current
        layer = step.cache.take(key, value)
        if layer is None:
            raise UnsupportedError(f"onnx: {type(module).__name__} attends to other keys than it keeps.")
        facts = self._survey.layers[layer]
        batch, heads, length, size = query.shape
        joined = [states.transpose(1, 2).flatten(2) for states in (query, key, value)]  # (B, S, heads * D)
        inputs: list[Tensor | None] = [*joined, *step.past[layer], step.last_index, step.total]
        attributes: dict[str, Any] = {
            "num_heads": facts.heads,
            "kv_num_heads": facts.key_value_heads,
            "scale": facts.scale,
        }
        if facts.softcap:
            attributes["softcap"] = facts.softcap
        if facts.window is not None:
            attributes["local_window_size"] = facts.window
        if facts.rotary is not None:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(facts.rotary.layout.interleaved)}
            inputs += step.rotary_tables[facts.rotary]
        if step.bias is not None:
            inputs += [None] * (10 - len(inputs)) + [step.bias]
        kept = (batch, facts.key_value_heads, step.past[layer][0].shape[2] + length, size)
        output, *present = torch.onnx.ops.symbolic_multi_out(
            f"{MICROSOFT}::GroupQueryAttention",
            inputs,
            attributes,
            dtypes=[torch.float32] * 3,
            shapes=[(batch, length, heads * size), kept, kept],
            version=1,
        )
        step.present[layer] = (present[0], present[1])
        return output.unflatten(2, (heads, size)), None


class _TableRotary(nn.Module):
    """Stands for a rotary module: looks cos and sin of positions up, (B, T) -> two of (B, T, R)."""

    def __init__(self, sources: Sequence[RotarySource], positions: int) -> None:
        super().__init__()
        self._arguments = [source.arguments for source in sources]
        for index, source in enumerate(sources):
            for name, table in zip(("cos", "sin"), source.tables(positions), strict=True):
                self.register_buffer(f"{name}_{index}", table)

    def forward(self, hidden: Tensor, position_ids: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of `position_ids`."""
        index = self._arguments.index((*rest, *named.values()))
        cos, sin = self.get_buffer(f"cos_{index}")[position_ids], self.get_buffer(f"sin_{index}")[position_ids]
        return cos, sin


@contextmanager
def substituted_decoder(model: PreTrainedModel, survey: Survey, positions: int) -> Iterator[DecoderEmitter]:
    """Swaps the parts of `model` inside the `with` block and yields what emits its attention.

    `positions` is how many the tables of rotary embeddings hold.
    """
    emitter = DecoderEmitter(survey)

    def replace(module: nn.Module, name: str) -> nn.Module | None:
        if is_rotary(module):
            mine = [source for source in survey.sources if source.module is module]
            return _TableRotary(mine, positions) if mine else None
        if find_rms_norm(module) is not None:
            return Placeholder("RmsNorm", module, name, None)
        return placeholder(module, name)

    implementation = model.config._attn_implementation
    with ExitStack() as stack:
        stack.callback(model.set_attn_implementation, implementation)
        stack.enter_context(swapped_modules(model, replace))
        stack.enter_context(registered(DECODER_ATTENTION, emitter.attention, emitter.mask))
        stack.enter_context(replaced_rotary(model, emitter.turn))
        model.set_attn_implementation(DECODER_ATTENTION)
        yield emitter
