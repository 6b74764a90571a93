"""The torch model that an export is compared with: the same weights, and the same rows in each dynamic rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.exporters.block_rounding import multiply_floats
from edgekit.exporters.description import read_description
from edgekit.exporters.lowering_names import takes_floats
from edgekit.exporters.precision import apply_precision
from edgekit.models.quantized import QuantizedLinear, read_quantization, replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgekit.artifact import Artifact


class FirstRowLinear(nn.Module):
    """A quantized linear that sees the first token only, as the export does: `(B, T, in) -> (B, T, out)`.

    The range that its input is rounded by is then that of the first rows. The other rows repeat the first; nothing
    that reaches the logits reads them.
    """

    def __init__(self, linear: QuantizedLinear) -> None:
        """Wraps `linear`."""
        super().__init__()
        self.linear = linear

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the first token's output, repeated."""
        outputs: Tensor = self.linear(inputs[:, :1])
        return outputs.expand(-1, inputs.shape[1], -1)


def load_reference(model: Artifact, export: Artifact) -> PreTrainedModel:
    """Returns the network of the artifact `model`, computing what the file of the artifact `export` should compute.

    Raises:
        ModelError: the model cannot be read.
        ArtifactError: `export` has no description.
    """
    from edgekit.models.source import load_model

    description = read_description(export.path)
    network = load_model(model).model
    apply_precision(network, description.precision)
    multiply_floats(network, takes_floats(description.lowerings))
    narrow(network, description.first_token_linears)
    return network


def rounds_activations(model: Artifact, export: Artifact) -> bool:
    """Returns whether the file of `export` rounds the input of any linear to 8 bits: an edge may fall either way.

    Raises:
        ArtifactError: `export` has no description.
        ModelError: the model's `quantization.json` cannot be read.
    """
    description = read_description(export.path)
    if description.precision != "as-is":
        return False
    floats = takes_floats(description.lowerings)
    schemes = read_quantization(model.path)
    return any(scheme.activations == "dynamic-int8" for name, scheme in schemes.items() if name not in floats)


def narrow(network: nn.Module, names: list[str]) -> None:
    """Lets the quantized linears called `names` see the first token only, in place."""
    present = dict(network.named_modules())
    for name in names:
        module = present.get(name)
        if isinstance(module, QuantizedLinear) and module.scheme.activations == "dynamic-int8":
            replace_module(network, module, FirstRowLinear(module))
