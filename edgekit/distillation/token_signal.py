"""What is kept of a language model's output, one record of at most 300 bytes a token, and how it is made and read.

| kind    | a record                                                              | bytes a token, V <= 65,536 / above |
|---------|-----------------------------------------------------------------------|------------------------------------|
| top-k   | K ids, K log-probabilities and the log of the exact tail mass         | 4 K + 2 / 6 K + 2                  |
| sampled | ids of N draws, how often each was drawn, the exact entropy           | 3 N + 2 / 5 N + 2                  |
|         | and, of a proposal other than the teacher, the ratio of their masses  | 5 N + 2 / 7 N + 2                  |

Ids are uint16, or uint32 where the vocabulary is larger. Log-probabilities are uint16 in steps of 1/2048 below 0: each
probability is within 0.025 % down to e^-32, where float16 would be within 0.4 %. Files are `token_store.py`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.distillation.config import TokenSignalConfig
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_targets import SampledTargets, TopKTargets
from edgekit.errors import TrainingError, UsageError

MAX_BYTES_PER_TOKEN = 300
Records = NDArray[np.void]
"""(N) records of a layout's dtype."""

_LOG_STEPS = 2048  # steps a nat of a log-probability
_ENTROPY_STEPS = 4096  # steps a nat of an entropy, at most 16 nats
_MAX_CODE = 65535


@dataclass(frozen=True)
class TokenLayout:
    """A configuration with the vocabulary that it is used on."""

    config: TokenSignalConfig
    vocabulary: int

    def __post_init__(self) -> None:
        """Checks the size of a record.

        Raises:
            UsageError: it is above 300 bytes, or K is not below the vocabulary.
        """
        config = self.config
        if config.kind == "top-k" and config.k >= self.vocabulary:
            raise UsageError(f"k: found {config.k}, expected less than the vocabulary's {self.vocabulary} tokens.")
        if self.bytes_per_token > MAX_BYTES_PER_TOKEN:
            name = "k" if config.kind == "top-k" else "draws"
            count = getattr(config, name)
            most = (MAX_BYTES_PER_TOKEN - 2) // ((self.bytes_per_token - 2) // count)
            raise UsageError(
                f"{name}: found {count}, which takes {self.bytes_per_token} bytes a token at a vocabulary of "
                f"{self.vocabulary}; expected at most {most}, for {MAX_BYTES_PER_TOKEN} bytes."
            )

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The dtype of a record, little-endian and packed."""
        config = self.config
        id_type = "<u2" if self.vocabulary <= _MAX_CODE + 1 else "<u4"
        if config.kind == "top-k":
            return np.dtype([("ids", id_type, (config.k,)), ("log_probs", "<u2", (config.k,)), ("log_tail", "<u2")])
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [
            ("ids", id_type, (config.draws,)),
            ("counts", "u1", (config.draws,)),
            ("entropy", "<u2"),
        ]
        if config.proposal_exponent != 1:
            fields.append(("ratios", "<f2", (config.draws,)))
        return np.dtype(fields)

    @property
    def bytes_per_token(self) -> int:
        """Size of a record."""
        return self.dtype.itemsize

    def encode(
        self, hidden: Tensor, head: VocabularyHead, generator: np.random.Generator, *, chunk_tokens: int = 256
    ) -> Records:
        """Returns the records of N tokens; no more than `chunk_tokens` rows of logits are held at once.

        Args:
            hidden: (N, H_teacher), the teacher's last hidden states.
            head: the teacher's, over the student's vocabulary.
            generator: what `sampled` draws with: the same generator gives the same records.
            chunk_tokens: changes memory only.

        Raises:
            TrainingError: a logit is not finite; names the token.
        """
        records = np.empty(len(hidden), dtype=self.dtype)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            for start in range(0, len(hidden), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                logits = head.logits(hidden[chunk]).to(wide).div_(self.config.temperature)
                log_p = torch.log_softmax(logits, dim=-1)
                bad = (~torch.isfinite(log_p).all(dim=-1)).nonzero()
                if len(bad):
                    raise TrainingError(
                        f"token {start + int(bad[0])}: the teacher's logits are not finite numbers. Use precision "
                        "float32, or check the teacher's weights."
                    )
                if self.config.kind == "top-k":
                    self._keep_top(log_p, records[chunk])
                else:
                    self._draw(log_p, records[chunk], generator)
        return records

    def decode(self, records: Records, device: torch.device) -> TopKTargets | SampledTargets:
        """Returns N records as tensors on `device`, float32."""
        token_ids = torch.from_numpy(records["ids"].astype(np.int64)).to(device)
        if self.config.kind == "top-k":
            log_probs, log_tail = (
                torch.from_numpy(records[name].astype(np.float32) / -_LOG_STEPS).to(device)
                for name in ("log_probs", "log_tail")
            )
            return TopKTargets(token_ids, log_probs, log_tail)
        weights = records["counts"].astype(np.float32) / self.config.draws
        if self.config.proposal_exponent != 1:
            weights = weights * records["ratios"].astype(np.float32)
        entropy = torch.from_numpy(records["entropy"].astype(np.float32) / _ENTROPY_STEPS).to(device)
        return SampledTargets(token_ids, torch.from_numpy(weights).to(device), entropy)

    def _keep_top(self, log_p: Tensor, records: Records) -> None:
        log_probs, token_ids = log_p.topk(self.config.k, dim=-1)  # (n, K)
        others = log_p.exp().scatter_(1, token_ids, 0.0).sum(dim=-1)
        log_tail = others.clamp_(min=torch.finfo(others.dtype).tiny).log_()
        records["ids"] = token_ids.cpu().numpy()
        records["log_probs"], records["log_tail"] = _codes(-log_probs, _LOG_STEPS), _codes(-log_tail, _LOG_STEPS)

    def _draw(self, log_p: Tensor, records: Records, generator: np.random.Generator) -> None:
        """Draws with replacement, one draw in each of N equal strata of the cumulative distribution.

        Anshumann et al., arXiv:2503.16870, "random sampling"; their draws are independent. Strata leave every token's
        expected count N q as it is and never raise its variance.
        """
        draws, exponent = self.config.draws, self.config.proposal_exponent
        p = log_p.exp()
        q = p if exponent == 1 else torch.softmax(log_p * exponent, dim=-1)
        places = (np.arange(draws) + generator.random((len(log_p), draws))) / draws  # (n, N), rising in a row
        cumulative = q.double().cumsum(dim=-1)
        aims = torch.from_numpy(places).to(log_p.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, aims, right=True).clamp_(max=self.vocabulary - 1)
        first = torch.ones_like(drawn, dtype=torch.bool)
        first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        slots = first.cumsum(dim=-1) - 1  # (n, N): which distinct token a draw is
        token_ids = torch.zeros_like(drawn).scatter_(1, slots, drawn)
        counts = torch.zeros_like(drawn).scatter_add_(1, slots, torch.ones_like(drawn))
        records["ids"], records["counts"] = token_ids.cpu().numpy(), counts.cpu().numpy()
        records["entropy"] = _codes(-(p * log_p).sum(dim=-1), _ENTROPY_STEPS)
        if exponent != 1:
            records["ratios"] = (p.gather(1, token_ids) / q.gather(1, token_ids)).cpu().numpy()


def _codes(values: Tensor, steps: int) -> NDArray[np.uint16]:
    """Returns values of at least 0 in steps of 1 / `steps`."""
    return (values.double() * steps).round_().clamp_(0, _MAX_CODE).cpu().numpy().astype(np.uint16)
