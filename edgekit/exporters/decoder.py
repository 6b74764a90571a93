"""Turns a decoder in memory into one ONNX graph: survey its attention, trace one step, lower, rewrite, describe.

It knows nothing of artifacts or stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.attention_survey import Survey, survey_attention
from edgekit.exporters.decoder_graph import keep_last_logits, pack_query_key_value
from edgekit.exporters.decoder_tracing import trace_decoder
from edgekit.exporters.lowering import lower
from edgekit.exporters.onnx import BEST_OPSET, OnnxExport, OnnxSettings, finish, plan_lowerings, require_mask_is_read
from edgekit.exporters.precision import store_half
from edgekit.exporters.rotary import require_static
from edgekit.exporters.simplification import simplify

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgekit.models.source import LoadedModel


@dataclass(frozen=True)
class DecoderSettings:
    """How to write a decoder, besides what holds for every model."""

    left_padding: bool
    """Heed padding before a row's text, as batches of prompts have it."""
    logits_to_keep: int
    """Last tokens that get logits unless a caller asks for more; 0: all."""


@dataclass(frozen=True)
class DecoderExport:
    """A decoder's graph, and what a runtime must be told of it."""

    export: OnnxExport
    survey: Survey
    context_length: int
    """Tokens of prompt and answer together."""


def export_decoder(loaded: LoadedModel, settings: OnnxSettings, decoder: DecoderSettings) -> DecoderExport:
    """Returns the graph of `loaded`, whose modules are in the precision that is to be written.

    Raises:
        UnsupportedError: the model computes what no operator does, cannot be traced, or a scheme has no operator.
        UsageError: the choice of lowerings is of other linears.
    """
    network = loaded.model
    context_length = read_context_length(network, loaded.task.max_length)
    require_static(network.config, context_length)
    survey = survey_attention(network, context_length)
    model = _trace(network, survey, context_length, decoder, settings.opset)
    modules = dict(network.named_modules())
    chosen = plan_lowerings(model.graph, modules, single_row_linears(network, decoder), settings.choice)
    lower(model, modules, None, chosen)
    simplify(model)
    pack_query_key_value(model.graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    require_mask_is_read(model.graph)
    if settings.half:
        store_half(model.graph)
    finish(model, settings)
    return DecoderExport(OnnxExport(model, [], [], chosen), survey, context_length)


def single_row_linears(network: PreTrainedModel, decoder: DecoderSettings) -> list[str]:
    """Returns the linears that are computed for one token of each row: the head, where only its logits are asked for.

    Raises:
        UnsupportedError: the model has no head.
    """
    return [head_name(network)] if decoder.logits_to_keep == 1 else []


def trace_linears(loaded: LoadedModel, logits_to_keep: int) -> tuple[ir.Graph, list[str]]:
    """Returns the graph of a decoder's step before it is lowered, and the linears of one token of each row.

    `logits_to_keep` is the export's.

    Raises:
        UnsupportedError: the model computes what no operator does, or cannot be traced.
    """
    network, usual = loaded.model, DecoderSettings(left_padding=True, logits_to_keep=logits_to_keep)
    context_length = read_context_length(network, loaded.task.max_length)
    graph = _trace(network, survey_attention(network, context_length), context_length, usual, BEST_OPSET).graph
    return graph, single_row_linears(network, usual)


def _trace(
    network: PreTrainedModel, survey: Survey, context_length: int, decoder: DecoderSettings, opset: int
) -> ir.Model:
    model = trace_decoder(network, survey, positions=context_length, left_padding=decoder.left_padding, opset=opset)
    keep_last_logits(model.graph, head_name(network), decoder.logits_to_keep)
    return model


def read_context_length(network: PreTrainedModel, asked: int) -> int:
    """Returns the tokens that the model is exported for: those of the task, at most what its positions allow."""
    allowed = getattr(network.config, "max_position_embeddings", None)
    return min(asked, allowed) if isinstance(allowed, int) else asked


def head_name(network: PreTrainedModel) -> str:
    """Returns the name of the linear that gives the logits.

    Raises:
        UnsupportedError: the model has none.
    """
    head = network.get_output_embeddings()
    name: str | None = next(
        (name for name, module in network.named_modules() if module is head and isinstance(head, nn.Module)), None
    )
    if name is None:
        raise UnsupportedError(f"onnx: {type(network).__name__} has no linear that gives logits.")
    return name
