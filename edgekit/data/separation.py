"""Makes a model keep packed documents apart, and proves on the model itself that it does.

transformers builds the mask of packed documents from positions that start anew, but only without a cache, without a
mask, and in architectures that hand positions to the mask. Where an architecture does not (OPT), it gets the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from edgekit.errors import ModelError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Separation = Literal["positions", "mask"]
"""How a model is told where documents begin: by positions alone, or by a mask beside them."""
_LENGTHS = (9, 1, 17, 6)
_TOLERANCE = 1e-4


def packed_inputs(
    input_ids: Tensor,
    position_ids: Tensor,
    document_ids: Tensor,
    separation: Separation,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor | bool]:
    """Returns what to call a model of weights `dtype` with, for packed documents int64 (B, T); never with a cache."""
    inputs: dict[str, Tensor | bool] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
    if separation == "mask":
        inputs["attention_mask"] = document_mask(document_ids, dtype)
    return inputs


def document_mask(document_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the mask (B, 1, T, T): 0 where a token sees itself or an earlier one of its document, else the least.

    Args:
        document_ids: int64 (B, T), equal inside a document.
        dtype: of the mask: that of the queries it meets.
    """
    same = document_ids[:, :, None] == document_ids[:, None, :]
    seen = same.tril()[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)


def find_separation(model: PreTrainedModel) -> Separation:
    """Returns how `model` keeps packed documents apart, tried on four short random ones.

    Raises:
        ModelError: its logits are not finite numbers.
        UnsupportedError: it does not, in either way: its attention or positions cross from one document to the next.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _try_each(model)
    finally:
        model.train(training)


def _try_each(model: PreTrainedModel) -> Separation:
    device = next(model.parameters()).device
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(rows, (1, length), generator=generator).to(device) for length in _LENGTHS]
    alone = torch.cat([model(input_ids=document, use_cache=False).logits for document in documents], dim=1)
    if not bool(torch.isfinite(alone).all()):
        raise ModelError(
            f"model type '{model.config.model_type}': found logits that are not finite numbers, expected finite ones: "
            "its weights are broken. Import or train it again."
        )
    input_ids = torch.cat(documents, dim=1)
    position_ids = torch.cat([torch.arange(length, device=device) for length in _LENGTHS])[None]
    numbers = [torch.full((length,), number, device=device) for number, length in enumerate(_LENGTHS)]
    document_ids = torch.cat(numbers)[None]
    separations: tuple[Separation, ...] = ("positions", "mask")
    differences = []
    for separation in separations:
        packed = model(**packed_inputs(input_ids, position_ids, document_ids, separation, model.dtype)).logits
        differences.append(float((packed - alone).abs().max() / alone.abs().max()))
        if differences[-1] <= _tolerance(model) and not (separation == "mask" and _slides(model)):
            return separation
    raise UnsupportedError(
        f"model type '{model.config.model_type}': packed documents are not kept apart: logits differ from those of "
        f"each document alone by {differences[0]:.2g} of the largest with positions, {differences[1]:.2g} with a mask. "
        "Train it on one document a row."
    )


def _tolerance(model: PreTrainedModel) -> float:
    return _TOLERANCE if model.dtype == torch.float32 else 4 * torch.finfo(model.dtype).eps


def _slides(model: PreTrainedModel) -> bool:
    """True where attention reaches back only so far: one mask for all layers would widen it."""
    return bool(getattr(model.config, "sliding_window", None))
