"""The `litert` branch of the stage `export`: a LiteRT file (.tflite), weights as codes, for Android, iOS and Linux.

litert-torch converts the model with the floats that the codes stand for; then the codes and their scales take the place
of those floats in the file (`litert_codes.py`). No code is chosen here: LiteRT's own quantizer is not used.

A .tflite file has fixed shapes. This one has a signature for each of several lengths (`length_32`), which share their
weights in the file and in memory; a text is padded up to the next of them.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import UnsupportedError
from edgekit.events import Event
from edgekit.exporters.description import LiteRTDescription, write_description
from edgekit.exporters.litert_codes import coded_weights, require_codes, store_codes
from edgekit.exporters.litert_needs import require_converter
from edgekit.exporters.quiet_conversion import quiet_conversion
from edgekit.formats import FORMATS
from edgekit.models.quantized import replace_module

if TYPE_CHECKING:
    from edgekit.exporters.stage import ExportConfig
    from edgekit.models.source import LoadedModel

LITERT_FILE = FORMATS["litert"].file
SHORTEST = 16
"""Tokens of the shortest signature, where the model reads as many."""


def export_litert_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a classifier as a `litert` artifact: `model.tflite`.

    Raises:
        UnsupportedError: the converter does not know an operator, LiteRT has no kernel for a scheme, or the precision
            is float16.
        ModelError: the model cannot be read, a weight is not finite, or the file does not hold the codes.
        EnvironmentLacksError: litert-torch is not installed.
    """
    from edgekit.exporters.onnx_stage import copy_parts
    from edgekit.exporters.precision import apply_precision, require_finite
    from edgekit.models.source import load_model

    require_converter()
    _require_precision(config)
    model = inputs.require("model", "export")
    loaded = load_model(model)
    require_finite(loaded.model, str(model.path))
    codes = coded_weights(loaded.model) if config.precision == "as-is" else {}
    apply_precision(loaded.model, "float32")
    lengths = signature_lengths(loaded.task.max_length, config.lengths)
    context.events(Event("progress", stage="export", text=f"converting for {len(lengths)} lengths"))
    content, placed = store_codes(convert(loaded, lengths), codes)
    with publish(context.out, kind="litert", lineage=lineage_of("export", inputs, config, context)) as directory:
        (directory / LITERT_FILE).write_bytes(content)
        require_codes(directory / LITERT_FILE, placed)
        require_kernels(directory / LITERT_FILE)
        copy_parts(directory, model)
        write_description(directory, _describe(config, lengths, (sorted(placed), sorted(codes)), model.digest))
    return Artifact.open(context.out)


def signature_lengths(max_length: int, asked: list[int] | None) -> list[int]:
    """Returns the lengths of the signatures, ascending: those asked for, else powers of two, and what the model reads.

    Raises:
        UnsupportedError: one that was asked for is longer than the model reads.
    """
    if asked is None:
        powers = [SHORTEST * 2**power for power in range(max_length.bit_length()) if SHORTEST * 2**power < max_length]
        return [*powers, max_length]
    if max(asked) > max_length:
        raise UnsupportedError(
            f"litert: lengths: found {max(asked)}, expected at most {max_length}, the tokens that the model reads."
        )
    return sorted({*asked, max_length})


def convert(loaded: LoadedModel, lengths: list[int]) -> bytes:
    """Returns a float classifier as the content of a .tflite file, (1, length) int32 inputs, `logits` (1, C) float32.

    Raises:
        UnsupportedError: the converter does not know an operator of the model.
    """
    from edgekit.exporters.onnx import input_names

    names = input_names(loaded)
    wrapped = _Logits(with_plain_norms(loaded.model), names).eval()
    with quiet_conversion():
        import litert_torch

        converter: Any = litert_torch
        for length in lengths:
            sample = {name: torch.ones(1, length, dtype=torch.int64) for name in names}
            converter = converter.signature(f"length_{length}", wrapped, sample_kwargs=sample)
        try:
            converted = converter.convert()
        except Exception as error:  # torch.export's, MLIR's and the converter's own have no common base
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found = lines[0][:300] if lines else type(error).__name__
            raise UnsupportedError(
                f"litert: litert-torch cannot convert the model: {found}. Export it as onnx."
            ) from error
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.tflite"
            converted.export(str(file))
            return file.read_bytes()


def require_kernels(file: Path) -> None:
    """Does nothing where LiteRT opens and runs the shortest signature of the file that was written.

    Raises:
        UnsupportedError: it does not.
    """
    from edgekit.errors import ModelError
    from edgekit.runtimes.litert_runtime import open_signatures

    try:
        session = open_signatures(file, threads=1)
        length = min(session.lengths)
        ones = torch.ones(1, length, dtype=torch.int64).numpy()
        session.run(dict.fromkeys(session.input_names, ones))
    except (ModelError, ValueError, RuntimeError) as error:
        raise UnsupportedError(
            f"litert: the interpreter cannot run what was written ({error}). Export it as onnx."
        ) from error


def with_plain_norms(network: nn.Module) -> nn.Module:
    """Returns `network`, its layer norms replaced by ones that the converter does not multiply into the next linear.

    It takes gain and bias of a norm into the weight of a linear that follows, whose codes would be lost; it does not
    where the bias is subtracted. A norm without a bias stays: where codes are lost by it, the export is refused.
    """
    for module in list(network.modules()):
        if type(module) is nn.LayerNorm and module.elementwise_affine and module.bias is not None:
            replace_module(network, module, _SubtractingNorm(module))
    return network


class _SubtractingNorm(nn.Module):
    """A layer norm that computes `norm(x) * gain - (-bias)`, to the bit what `norm(x) * gain + bias` is."""

    opposite: torch.Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps, self.gain = norm.normalized_shape, norm.eps, norm.weight
        self.register_buffer("opposite", -norm.bias.detach())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(inputs, self.shape, eps=self.eps) * self.gain - self.opposite


class _Logits(nn.Module):
    """A classifier as a function of named arrays, `(1, T)` int64 each, to `{"logits": (1, C)}`."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(**{name: inputs[name] for name in self.names}).logits}


def _describe(
    config: ExportConfig, lengths: list[int], coded: tuple[list[str], list[str]], digest: str
) -> LiteRTDescription:
    placed, wanted = coded
    notes = [f"Texts are padded to the next of {', '.join(map(str, lengths))} tokens: a length between takes as long."]
    looked_up = [name for name in wanted if name not in placed]
    if looked_up:
        notes.append(
            f"The rows of {', '.join(looked_up)} do not depend on the text: the file holds them as the floats that "
            "their codes stand for."
        )
    return LiteRTDescription(
        format="litert",
        file=LITERT_FILE,
        precision=config.precision,
        notes=notes,
        model_digest=digest,
        lengths=lengths,
        coded_weights=placed,
    )


def _require_precision(config: ExportConfig) -> None:
    if config.precision == "float16":
        raise UnsupportedError(
            "litert: precision: found float16, expected as-is or float32. Export float32, or as onnx."
        )
