"""The `quantize` stage: a float model in, the same model on integer codes out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import UsageError
from edgekit.events import track

if TYPE_CHECKING:
    from torch import nn

    from edgekit.models.codes import Scheme
    from edgekit.models.source import LoadedModel
    from edgekit.quantization.scheme import Rules

Bits = Literal[8, 4, 3, 2]
TableBits = Literal[8, 4]
GroupSize = Literal[16, 32, 64, 128, 256]
Activations = Literal["dynamic-int8", "float"]
Algorithm = Literal["round-to-nearest", "hqq", "gptq", "awq"]
_STAGE = "quantize"
_CALIBRATED = ("gptq", "awq")


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
    """Bits a code of a linear's weight. Fewer than 8 need a group size, or float activations."""
    group_size: GroupSize | None = None
    """Input channels that share a scale; none: one scale for each output channel, the fastest for encoders."""
    activations: Activations = "dynamic-int8"
    """`dynamic-int8` rounds a linear's input to 8 bits when it arrives and multiplies integers; `float` does not."""
    symmetric: bool = True
    """True: signed codes around zero. False: unsigned codes with a zero point, for weights that lie to one side."""
    algorithm: Algorithm = "round-to-nearest"
    """How codes are chosen: `round-to-nearest` and `hqq` look at the weights alone; `gptq` (makes rounding errors good
    column by column) and `awq` (scales up the channels with large inputs) run calibration text through the model."""
    scales: Literal["least-error", "range"] = "least-error"
    """How the scales of fewer than 8 bits are chosen: for the least squared error, or by the range of the weights."""
    calibration_rows: int = Field(default=128, ge=1)
    """Rows of the calibration split that `gptq` and `awq` run through the model, drawn with the seed."""
    calibration_length: int = Field(default=512, ge=4)
    """Tokens of each that are used at most."""
    calibration_split: str = "train"
    """Split of the data that they are drawn from."""
    act_order: bool = False
    """For `gptq`: round the columns with the largest inputs first. Scales are then chosen before the first column."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """For `gptq`: what is added to the inputs' second moments, as a share of their mean. More trusts the text less."""
    reduce_range: bool | None = None
    """Widen scales just enough that x86 processors without VNNI (AVX2) do not saturate; without it they compute some
    sums wrongly. Left out: wherever it applies, that is with symmetric 8-bit codes by channel and dynamic-int8
    activations. False suits fleets of ARM and VNNI processors only."""
    narrow_scales: bool = False
    """Keep the scales of symmetric 4-bit codes in groups positive and as short as a bfloat16: what ExecuTorch's kernel
    for them (XNNPACK) reads. It costs a little accuracy; every format holds such scales."""
    embeddings: TableBits | None = 8
    """Bits a code of the large embedding tables; none: they stay float. A language model whose output layer shares its
    weight with the table stores the codes once and multiplies with them too."""
    embeddings_group_size: GroupSize | None = None
    """Neighbours in a row of an embedding table that share a scale; none: one scale a row. 4 bits need one."""
    head: TableBits | None = 8
    """Bits a code of the linear that gives a language model's logits, where it does not share the table's weight;
    none: it stays float."""
    head_group_size: GroupSize | None = None
    """Input channels of that linear that share a scale; none: one scale for each token."""
    exclude: list[str] = []
    """Patterns of linears and embeddings that stay float. A pattern is a module name, or the name of a module around
    it; `*`, `?` and `[...]` as in a shell."""
    overrides: list[QuantizeOverride] = []
    """Other schemes for the linears that a pattern names; the first match wins, `exclude` before all. A classifier's
    output layer stays float unless an override names it."""

    @property
    def calibrates(self) -> bool:
        """True when the codes are chosen on text."""
        return self.algorithm in _CALIBRATED

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        """Refuses what no kernel computes."""
        _check(_settings(self), "")
        for override in self.overrides:
            _check(_settings(self, override), f"overrides: '{override.pattern}': ")
        if self.narrow_scales and not any(part.narrow_scales for part in coded_parts(self).values()):
            raise ValueError("narrow_scales: found no symmetric 4-bit codes in groups, to which alone it applies.")
        _check_table(self.embeddings, self.embeddings_group_size, "embeddings")
        _check_table(self.head, self.head_group_size, "head")
        return self


@dataclass(frozen=True)
class CodedPart:
    """What kind of codes a part of a model gets."""

    bits: int
    group_size: int | None
    symmetric: bool
    activations: Activations
    narrow_scales: bool = False


def coded_parts(config: QuantizeConfig) -> dict[str, CodedPart]:
    """Returns the key that decides on a part's codes to their kind: `bits`, `overrides.0`, `embeddings`, `head`.

    Which of them a model has is not known here: a head that shares the table's weight takes the table's codes.
    """
    settings = {"bits": _settings(config)}
    settings |= {f"overrides.{index}": _settings(config, override) for index, override in enumerate(config.overrides)}
    kept = [field.name for field in fields(CodedPart)]
    parts = {key: CodedPart(**{name: values[name] for name in kept}) for key, values in settings.items()}
    if config.embeddings is not None:
        parts["embeddings"] = CodedPart(config.embeddings, config.embeddings_group_size, True, "float")
    if config.head is not None:
        parts["head"] = CodedPart(config.head, config.head_group_size, True, config.activations)
    return parts


def quantize(inputs: StageInputs, config: QuantizeConfig, context: StageContext) -> Artifact:
    """Makes a model artifact whose weights are integer codes; torch computes with them what is deployed.

    Raises:
        UsageError: the model is quantized already, a pattern matches nothing, or calibration data is missing.
        DataError: the calibration split is missing.
        ModelError: the model cannot be read, or its weights are not finite.
        UnsupportedError: a weight beyond what a float16 scale can code, or layers that the algorithm cannot handle.
    """
    from edgekit.models.quantized import schemes_of
    from edgekit.models.source import load_model, save_model
    from edgekit.quantization.scheme import choose_schemes

    model = inputs.require("model", _STAGE)
    if config.calibrates:
        inputs.require("data", f"{_STAGE} with algorithm = '{config.algorithm}'")
    loaded = load_model(model)
    if schemes_of(loaded.model):
        raise UsageError(f"{model.path}: is quantized already; codes are chosen once. Quantize the float model.")
    schemes = choose_schemes(loaded.model, _rules(config), labels=len(loaded.task.labels))
    if config.calibrates:
        _quantize_layers(loaded, schemes, inputs, config, context)
    quantize_modules(loaded.model, schemes, config, context)
    with publish(context.out, kind="model", lineage=lineage_of(_STAGE, inputs, config, context)) as directory:
        save_model(loaded, directory)
    return Artifact.open(context.out)


def quantize_modules(
    model: nn.Module, schemes: dict[str, Scheme], config: QuantizeConfig, context: StageContext
) -> None:
    """Replaces the modules named in `schemes` that are still float, in place, by what their weights alone decide.

    Raises:
        ModelError: a weight is not finite.
        UnsupportedError: a weight beyond what a float16 scale can code.
    """
    from edgekit.models.quantized import QuantizedModule, shared_sources, weight_matrix
    from edgekit.quantization.hqq import hqq_quantize
    from edgekit.quantization.replacement import naming, put_codes
    from edgekit.quantization.round_to_nearest import quantize_tensor

    left = [name for name in schemes if not isinstance(model.get_submodule(name), QuantizedModule)]
    sources = shared_sources(model, schemes)
    done: dict[str, QuantizedModule] = {}
    left.sort(key=lambda name: name in sources)
    for name in track(left, context.events, stage=_STAGE, text="rounding weights", total=len(left), unit="modules"):
        with naming([name]):
            weight = weight_matrix(model.get_submodule(name))
            if config.algorithm == "hqq":
                codes = hqq_quantize(weight, schemes[name])
            else:
                codes = quantize_tensor(weight, schemes[name], config.scales)
        done[name] = put_codes(model, name, codes)
        if name in sources:
            done[name].share_weight(done[sources[name]])


def _quantize_layers(
    loaded: LoadedModel, schemes: dict[str, Scheme], inputs: StageInputs, config: QuantizeConfig, context: StageContext
) -> None:
    """Replaces the linears of layers by what calibration text decides, in place."""
    from edgekit.models.structure import read_sizes
    from edgekit.quantization.gptq import GptqConfig
    from edgekit.quantization.layerwise import LayerwiseConfig, linears_in_layers, quantize_layers
    from edgekit.quantization.text import calibration_batches

    batches = calibration_batches(loaded, inputs.require("data", _STAGE), config, context)
    settings = LayerwiseConfig(
        algorithm="gptq" if config.algorithm == "gptq" else "awq",
        gptq=GptqConfig(damping=config.damping, act_order=config.act_order, scales=config.scales),
        scales=config.scales,
    )
    inside = linears_in_layers(loaded.model, schemes)
    layers = quantize_layers(loaded.model, inside, batches, settings)
    total = read_sizes(loaded.model.config).layers
    for _ in track(layers, context.events, stage=_STAGE, text=f"{config.algorithm}", total=total, unit="layers"):
        pass


def _rules(config: QuantizeConfig) -> Rules:
    from edgekit.models.codes import Scheme
    from edgekit.quantization.scheme import Rules

    head = _table_settings(config.head, config.head_group_size, config)
    tables = _table_settings(config.embeddings, config.embeddings_group_size, config)
    return Rules(
        linears=Scheme(**_settings(config)),
        embeddings=Scheme(**tables | {"activations": "float"}) if config.embeddings else None,
        head=Scheme(**head) if config.head else None,
        exclude=config.exclude,
        overrides=[(override.pattern, Scheme(**_settings(config, override))) for override in config.overrides],
    )


def _table_settings(bits: int | None, group_size: int | None, config: QuantizeConfig) -> dict[str, Any]:
    """Returns the fields of the `Scheme` of an embedding table or a language model's head."""
    settings = {"bits": bits, "group_size": group_size, "symmetric": True, "activations": config.activations}
    return settings | {"reduce_range": config.reduce_range is not False and _can_saturate(settings)}


def _settings(config: QuantizeConfig, override: QuantizeOverride | None = None) -> dict[str, Any]:
    """Returns the fields of a `Scheme`: those that `override` sets, and `config`'s for the others."""
    overridden = override.model_fields_set if override is not None else set()
    names = ("bits", "group_size", "activations", "symmetric", "reduce_range")
    settings = {name: getattr(override if name in overridden else config, name) for name in names}
    inherited = override is not None and "reduce_range" not in overridden
    if settings["reduce_range"] is None or (inherited and settings["reduce_range"]):
        settings["reduce_range"] = _can_saturate(settings)
    has_short_groups = settings["bits"] == 4 and settings["symmetric"] and settings["group_size"] is not None
    return settings | {"narrow_scales": config.narrow_scales and has_short_groups}


def _can_saturate(settings: dict[str, Any]) -> bool:
    """Returns whether the kernel of a scheme sums products in 16 bits on some processors."""
    by_channel = settings["bits"] == 8 and settings["symmetric"] and settings["group_size"] is None
    return bool(by_channel and settings["activations"] == "dynamic-int8")


def _check(settings: dict[str, Any], where: str) -> None:
    if settings["bits"] is None:
        raise ValueError(f"{where}found bits = none, expected 8, 4, 3 or 2; use `exclude` to keep a module float.")
    if settings["bits"] < 8 and settings["group_size"] is None and settings["activations"] == "dynamic-int8":
        raise ValueError(
            f"{where}found {settings['bits']} bits without a group size and dynamic-int8 activations, expected a group "
            "size (group_size = 32, 64 or 128), or activations = 'float'."
        )
    if settings["reduce_range"] and not _can_saturate(settings):
        raise ValueError(
            f"{where}found reduce_range, expected it only with symmetric 8-bit codes by channel and dynamic-int8 "
            "activations: nothing else saturates."
        )


def _check_table(bits: int | None, group_size: int | None, key: str) -> None:
    if bits == 4 and group_size is None:
        raise ValueError(f"{key}: found 4 bits without a group size, expected one: {key}_group_size = 32, 64 or 128.")
    if bits is None and group_size is not None:
        raise ValueError(f"{key}_group_size: found {group_size} where {key} = none keeps it float; leave it out.")
