"""Runs `torch.onnx.export` on a model whose parts were substituted, quietly, with dynamic batch and length.

It knows nothing of what the operators in the graph are lowered to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.exporters.substitution import CannotFuseError, can_fuse_attention, substituted
from edgekit.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTPUT = "logits"
_LENGTH_LIMIT = 1 << 20
_CHATTY = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript", "onnx_ir", "torch.fx")


@dataclass(frozen=True)
class Trace:
    """A graph with placeholders, before lowering."""

    model: ir.Model
    notes: list[str]
    """What a person should know, such as why attention is not fused."""


def trace(model: PreTrainedModel, input_names: Sequence[str], *, opset: int, fuse_attention: bool = True) -> Trace:
    """Returns the graph of `model` from `input_names`, each int64 (batch, length), to `logits` (batch, labels).

    Attention is fused where the model allows it, else its plain operators are kept and a note says why; with
    `fuse_attention` False it never is.

    Raises:
        UnsupportedError: the model cannot be traced with dynamic batch and length.
    """
    if not fuse_attention:
        return Trace(_trace(model, input_names, opset, fuse_attention=False), [])
    if not can_fuse_attention(model):
        reason = f"{type(model).__name__} does not use transformers' AttentionInterface"
        return Trace(_trace(model, input_names, opset, fuse_attention=False), [_plain(reason)])
    try:
        return Trace(_trace(model, input_names, opset, fuse_attention=True), [])
    except CannotFuseError as error:
        return Trace(_trace(model, input_names, opset, fuse_attention=False), [_plain(str(error))])


def _plain(reason: str) -> str:
    return f"attention is exported as plain operators: {reason}"


class _Logits(nn.Module):
    """Takes positional inputs and returns the logits alone."""

    def __init__(self, network: PreTrainedModel, input_names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._input_names = tuple(input_names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the logits (batch, labels)."""
        named: dict[str, Any] = dict(zip(self._input_names, inputs, strict=True))
        logits: Tensor = self.network(**named, return_dict=True).logits
        return logits


def _trace(model: PreTrainedModel, input_names: Sequence[str], opset: int, *, fuse_attention: bool) -> ir.Model:
    limit = getattr(model.config, "max_position_embeddings", None) or _LENGTH_LIMIT
    batch, length = torch.export.Dim("batch", max=_LENGTH_LIMIT), torch.export.Dim("length", max=limit)
    # One tensor for each input: torch.export would take the same one twice for the same input.
    examples = tuple(torch.ones(2, min(7, limit), dtype=torch.int64) for _ in input_names)
    with substituted(model, fuse_attention=fuse_attention), quiet_tracing():
        try:
            program = torch.onnx.export(
                _Logits(model, input_names).eval(),
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=list(input_names),
                output_names=[OUTPUT],
                dynamic_shapes=(({0: batch, 1: length},) * len(input_names),),
                verbose=False,
            )
        except Exception as error:
            _raise_if_cannot_fuse(error)
            raise UnsupportedError(
                f"{type(model).__name__}: cannot be traced with dynamic batch and length ({root_cause(error)})."
            ) from error
    if program is None:
        raise UnsupportedError(f"{type(model).__name__}: tracing gave no graph.")
    return program.model


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silences torch's and onnxscript's loggers, warnings and prints; restores them at the end."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    loggers += [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(_CHATTY)]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(quiet_transformers())
        sink = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(sink))
        stack.enter_context(contextlib.redirect_stderr(sink))
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _raise_if_cannot_fuse(error: BaseException) -> None:
    for cause in _causes(error):
        if isinstance(cause, CannotFuseError):
            raise cause from None


def root_cause(error: BaseException) -> str:
    """Returns the first line of the first cause of an error."""
    lines = str(_causes(error)[-1]).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _causes(error: BaseException) -> list[BaseException]:
    chain, current = [error], error.__cause__ or error.__context__
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain
