"""The `quantize` stage: a float model in, the same model on integer codes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import ModelError, UsageError
from edgekit.events import track

if TYPE_CHECKING:
    from torch import nn

    from edgekit.models.quantized import Scheme
    from edgekit.quantization.scheme import Rules

Bits = Literal[8, 4]
GroupSize = Literal[16, 32, 64, 128, 256]
Activations = Literal["dynamic-int8", "float"]


class QuantizeOverride(StageConfig):
    """Another scheme for the linears that a pattern names; what it leaves out is as for all other linears."""

    pattern: str = Field(min_length=1)
    """Module name, or the name of a module around it; `*`, `?` and `[...]` as in a shell."""
    bits: Bits | None = None
    """Bits a code."""
    group_size: GroupSize | None = None
    """Input channels that share a scale."""
    activations: Activations | None = None
    """What the weight is multiplied with."""
    symmetric: bool | None = None
    """Signed codes around zero, or unsigned ones with a zero point."""
    reduce_range: bool | None = None
    """Keep clear of 16-bit saturation on x86 without VNNI."""


class QuantizeConfig(StageConfig):
    """How the weights of a model become integer codes."""

    bits: Bits = 8
    """Bits a code of a linear's weight. 4 needs a group size."""
    group_size: GroupSize | None = None
    """Input channels that share a scale; none: one scale for each output channel, the fastest for encoders."""
    activations: Activations = "dynamic-int8"
    """`dynamic-int8` rounds a linear's input to 8 bits when it arrives and multiplies integers; `float` does not."""
    symmetric: bool = True
    """True: signed codes around zero. False: unsigned codes with a zero point, for weights that lie to one side."""
    reduce_range: bool | None = None
    """Widen scales just enough that x86 processors without VNNI (AVX2) do not saturate; without it they compute some
    sums wrongly. Left out: wherever it applies, that is with symmetric 8-bit codes by channel and dynamic-int8
    activations. False suits fleets of ARM and VNNI processors only."""
    embeddings: Literal[8] | None = 8
    """Bits a code of the large embedding tables, one scale a row; none: they stay float."""
    exclude: list[str] = []
    """Patterns of linears and embeddings that stay float. A pattern is a module name, or the name of a module around
    it; `*`, `?` and `[...]` as in a shell."""
    overrides: list[QuantizeOverride] = []
    """Other schemes for the linears that a pattern names; the first match wins, `exclude` before all. The output layer
    stays float unless an override names it."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        """Refuses what no kernel computes."""
        _check(_settings(self), "")
        for override in self.overrides:
            _check(_settings(self, override), f"overrides: '{override.pattern}': ")
        return self


def quantize(inputs: StageInputs, config: QuantizeConfig, context: StageContext) -> Artifact:
    """Makes a model artifact whose weights are integer codes; torch computes with them what is deployed.

    Raises:
        UsageError: the model is quantized already, or a pattern matches nothing.
        ModelError: the model cannot be read, or its weights are not finite.
        UnsupportedError: a weight beyond what a float16 scale can code.
    """
    from edgekit.models.quantized import schemes_of
    from edgekit.models.source import load_model, save_model
    from edgekit.quantization.scheme import choose_schemes

    model = inputs.require("model", "quantize")
    loaded = load_model(model)
    if schemes_of(loaded.model):
        raise UsageError(f"{model.path}: is quantized already; codes are chosen once. Quantize the float model.")
    schemes = choose_schemes(loaded.model, _rules(config), outputs=len(loaded.task.labels))
    quantize_modules(loaded.model, schemes, context)
    with publish(context.out, kind="model", lineage=lineage_of("quantize", inputs, config, context)) as directory:
        save_model(loaded, directory)
    return Artifact.open(context.out)


def quantize_modules(model: nn.Module, schemes: dict[str, Scheme], context: StageContext) -> None:
    """Replaces the modules named in `schemes` by quantized ones, in place.

    Raises:
        ModelError: a weight is not finite.
        UnsupportedError: a weight beyond what a float16 scale can code.
    """
    from edgekit.models.quantized import QuantizedLinear, empty_like, replace_module
    from edgekit.quantization.round_to_nearest import quantize_tensor

    present = dict(model.named_modules())
    steps = track(
        schemes.items(), context.events, stage="quantize", text="rounding weights", total=len(schemes), unit="modules"
    )
    for name, scheme in steps:
        module, quantized = present[name], empty_like(present[name], scheme, name)
        try:
            quantized.set_weight(quantize_tensor(module.weight, scheme))
        except (ModelError, UsageError) as error:
            raise type(error)(f"module '{name}': {error}") from error
        if isinstance(quantized, QuantizedLinear) and module.bias is not None:
            quantized.bias = module.bias.detach().clone()
        replace_module(model, module, quantized)


def _rules(config: QuantizeConfig) -> Rules:
    from edgekit.models.quantized import Scheme
    from edgekit.quantization.scheme import Rules

    return Rules(
        linears=Scheme(**_settings(config)),
        embeddings=Scheme(bits=config.embeddings, activations="float") if config.embeddings else None,
        exclude=config.exclude,
        overrides=[(override.pattern, Scheme(**_settings(config, override))) for override in config.overrides],
    )


def _settings(config: QuantizeConfig, override: QuantizeOverride | None = None) -> dict[str, Any]:
    """Returns the fields of a `Scheme`: those that `override` sets, and `config`'s for the others."""
    overridden = override.model_fields_set if override is not None else set()
    names = ("bits", "group_size", "activations", "symmetric", "reduce_range")
    settings = {name: getattr(override if name in overridden else config, name) for name in names}
    inherited = override is not None and "reduce_range" not in overridden
    if settings["reduce_range"] is None or (inherited and settings["reduce_range"]):
        settings["reduce_range"] = _can_saturate(settings)
    return settings


def _can_saturate(settings: dict[str, Any]) -> bool:
    """Returns whether the kernel of a scheme sums products in 16 bits on some processors."""
    by_channel = settings["bits"] == 8 and settings["symmetric"] and settings["group_size"] is None
    return bool(by_channel and settings["activations"] == "dynamic-int8")


def _check(settings: dict[str, Any], where: str) -> None:
    if settings["bits"] is None:
        raise ValueError(f"{where}found bits = none, expected 8 or 4; use `exclude` to keep a module float.")
    if settings["bits"] == 4 and settings["group_size"] is None:
        raise ValueError(f"{where}found 4 bits without a group size, expected one: group_size = 32, 64 or 128.")
    if settings["reduce_range"] and not _can_saturate(settings):
        raise ValueError(
            f"{where}found reduce_range, expected it only with symmetric 8-bit codes by channel and dynamic-int8 "
            "activations: nothing else saturates."
        )
