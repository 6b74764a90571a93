"""Two batches of random tokens, each with a row that is padded on the right."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.models.source import LoadedModel


def batches_for(loaded: LoadedModel) -> list[tuple[Tensor, Tensor]]:
    """Returns `input_ids` and `attention_mask`, both int64 (B, T), of two batches."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for rows, length in ((3, 12), (2, 7)):
        ids = torch.randint(6, 100, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        ids[mask == 0] = loaded.tokenizer.pad_token_id
        batches.append((ids, mask))
    return batches
