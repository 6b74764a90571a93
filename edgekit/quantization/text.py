"""Draws calibration text from prepared data, as batches of token ids.

What is measured on it is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.artifact import Artifact
from edgekit.contract import StageContext
from edgekit.data.prepared import PreparedData
from edgekit.data.preprocessing import encode, length_buckets, pad
from edgekit.models.layer_run import Batch
from edgekit.models.source import LoadedModel

if TYPE_CHECKING:
    from edgekit.quantization.stage import QuantizeConfig

# Tokens of a batch at most: bounds the attention's and the feed-forward's memory.
_BATCH_TOKENS = 2048


def calibration_batches(
    loaded: LoadedModel, data: Artifact, config: QuantizeConfig, context: StageContext
) -> list[Batch]:
    """Returns `input_ids` and `attention_mask` of rows drawn with the stage's seed, padded on the right.

    Raises:
        DataError: the split is missing, or a row has no token.
    """
    split = PreparedData.open(data).split(config.calibration_split)
    generator = np.random.default_rng(context.seed)
    count = min(config.calibration_rows, len(split))
    chosen = sorted(generator.choice(len(split), size=count, replace=False).tolist())
    length = min(config.calibration_length, loaded.task.max_length)
    where = [f"split '{split.name}', {split.row_name(row)}" for row in chosen]
    ids = encode([split.texts[row] for row in chosen], loaded.tokenizer, length, where=where)
    pad_id = loaded.tokenizer.pad_token_id or 0
    longest = max(len(row) for row in ids)
    batches = []
    for batch in length_buckets([len(row) for row in ids], max(1, _BATCH_TOKENS // longest)):
        input_ids, attention_mask = pad([ids[row] for row in batch], pad_id)
        batches.append((torch.from_numpy(input_ids), torch.from_numpy(attention_mask)))
    return batches
