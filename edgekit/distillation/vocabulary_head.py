"""The last linear of a language model, from hidden states to logits, as the losses see it.

It knows how a model of transformers says what its head does; not what the logits are for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekit.errors import ModelError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 4
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class VocabularyHead:
    """`z = scale * (hidden @ weight^T + bias)`, then `softcap * tanh(z / softcap)` where there is a soft cap."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None = None
    """(V)."""
    scale: float = 1.0
    """Granite divides its logits by `logits_scaling`, Cohere multiplies them by `logit_scale`."""
    softcap: float | None = None
    """Gemma's `final_logit_softcapping`."""

    @property
    def size(self) -> int:
        """V, the number of tokens."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits of (..., H) hidden states, (..., V) in their dtype: all of them at once."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def select(self, token_ids: Tensor) -> VocabularyHead:
        """Returns the head whose logit i is this head's logit `token_ids[i]`: a teacher's, in the student's vocabulary.

        A softmax over the selected logits is the teacher's distribution renormalized over the tokens that both have.
        The first rows in their order, which is what padding leaves, are not copied.

        Args:
            token_ids: (V_student), int64, the teacher's id of each of the student's tokens.

        Raises:
            ModelError: an id is not one of this head's, or comes twice.
        """
        if token_ids.numel() == 0 or int(token_ids.min()) < 0 or int(token_ids.max()) >= self.size:
            found = "none" if token_ids.numel() == 0 else f"{int(token_ids.min())} to {int(token_ids.max())}"
            raise ModelError(
                f"vocabulary map: found teacher ids {found}, expected ids from 0 to {self.size - 1}. Every token of "
                "the student must be one of the teacher's."
            )
        if token_ids.unique().numel() != token_ids.numel():
            raise ModelError("vocabulary map: two tokens of the student have the same teacher id, expected one each.")
        count = token_ids.numel()
        if torch.equal(token_ids, torch.arange(count, device=token_ids.device)):
            return replace(self, weight=self.weight[:count], bias=None if self.bias is None else self.bias[:count])
        rows = token_ids.to(self.weight.device)
        return replace(self, weight=self.weight[rows], bias=None if self.bias is None else self.bias[rows])


def find_head(model: PreTrainedModel) -> VocabularyHead:
    """Returns the head of a causal language model, its weight and bias being the model's own.

    Raises:
        UnsupportedError: the model has no plain linear as its head.
    """
    module = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        raise UnsupportedError(
            f"model type '{model.config.model_type}': found {type(module).__name__} as its head, expected a linear "
            "with a float weight. Distill before quantizing."
        )
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return VocabularyHead(weight, getattr(module, "bias", None), scale, None if softcap is None else float(softcap))


def check_head(model: PreTrainedModel, head: VocabularyHead) -> None:
    """Runs `model` on a few tokens and checks that `head` gives its logits.

    Raises:
        UnsupportedError: the model does something else between its hidden states and its logits.
    """
    token_ids = torch.arange(_PROBE_TOKENS, device=head.weight.device)[None] % head.size
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(input_ids=token_ids).logits.double()
            hidden = model.base_model(input_ids=token_ids).last_hidden_state
            found = head.logits(hidden).double()
    finally:
        model.train(was_training)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not difference < (_TOLERANCE if hidden.dtype == torch.float32 else 0.05):
        raise UnsupportedError(
            f"model type '{model.config.model_type}': its logits differ by {difference:.1e} of the largest one from "
            "those of a linear over its last hidden states, expected the same. It does something else with them, which "
            "the losses over a large vocabulary do not know."
        )
