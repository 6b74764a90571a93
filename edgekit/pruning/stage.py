"""The stage `prune`: a smaller student cut out of a teacher, artifact in, artifact out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import UnsupportedError
from edgekit.events import Event, track
from edgekit.results import Result

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgekit.data.prepared import PreparedData
    from edgekit.models.source import LoadedModel
    from edgekit.pruning.choice import Choice

STAGE = "prune"
REPORT_FILE = "prune.json"


class PruneConfig(StageConfig):
    """What to keep of the model. At least one of layers, neurons, vocabulary and positions must be given."""

    layers: int | None = Field(default=None, ge=1)
    """Transformer layers to keep: how many. None keeps all, or those of `keep_layers`."""
    keep_layers: list[int] | None = None
    """Transformer layers to keep: which, counted from 0. None keeps all, or as many as `layers` says."""
    choose: Literal["uniform", "influence"] = "uniform"
    """Which `layers` to keep: evenly spaced ones up to the last, or those that change their input most."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Neurons to keep in each feed-forward block: those that add most to its output on `train`. None keeps all."""
    vocabulary_size: int | None = Field(default=None, ge=1)
    """Tokens to keep at most: the most frequent of the data, and all that any text needs. None sets no limit."""
    min_count: int | None = Field(default=None, ge=1)
    """Drops tokens that occur less often in the data. None is 1 with a `vocabulary_size`, else nothing is dropped."""
    splits_counted: list[str] | None = None
    """Data splits whose tokens are counted, each weighing the same. None counts `train` and, if there, `unlabelled`."""
    max_positions: int | None = Field(default=None, ge=1)
    """Positions to keep of a learned position table: at least the tokens a text may have. None keeps all."""
    calibration_rows: int = Field(default=256, ge=1)
    """Rows of `train` that neurons, and with `choose = "influence"` layers, are measured on, and `refit` fits."""
    refit: bool = False
    """Let the layers that are kept make up for what was dropped: least squares on calibration text, layer by layer."""
    refit_ridge: float = Field(default=0.3, ge=0)
    """How much `refit` holds back changes of weights; 0: not at all."""

    @field_validator("keep_layers")
    @classmethod
    def _check_layers(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and (not layers or min(layers) < 0 or len(set(layers)) != len(layers)):
            raise ValueError(f"found {layers}, expected distinct indices of layers, counted from 0.")
        return layers

    @model_validator(mode="after")
    def _check_purpose(self) -> Self:
        parts = ("layers", "keep_layers", "intermediate_size", "vocabulary_size", "min_count", "max_positions")
        if all(getattr(self, part) is None for part in parts):
            raise ValueError(f"nothing to prune. Set at least one of {', '.join(parts)}.")
        if self.layers is not None and self.keep_layers is not None:
            raise ValueError("layers and keep_layers are both set. Say how many layers to keep, or which.")
        if self.choose == "influence" and self.layers is None:
            raise ValueError("choose = 'influence' needs layers: how many to keep.")
        if self.refit and self.layers is None and self.keep_layers is None and self.intermediate_size is None:
            raise ValueError(
                "refit makes up for dropped layers or neurons: set layers, keep_layers or intermediate_size."
            )
        if self.splits_counted is not None and (not self.trims_vocabulary or not self.splits_counted):
            raise ValueError("splits_counted names splits to count for vocabulary_size or min_count: set one of them.")
        return self

    @property
    def trims_vocabulary(self) -> bool:
        """True when tokens are to be dropped."""
        return self.vocabulary_size is not None or self.min_count is not None


class PruneReport(Result):
    """What was kept: the content of `prune.json` in the student."""

    parameters_before: int
    parameters_after: int
    layers_before: int
    layers_kept: list[int]
    """Indices in the larger model, ascending."""
    block_influence: list[float] | None = None
    """`1 - cos(input, output)` of each layer of the larger model; None when not measured."""
    errors_before_refit: list[float] | None = None
    """How far the output of each kept layer was from the larger model's, as a share of its square; None: no refit."""
    errors_after_refit: list[float] | None = None
    """The same with the layer's weights refitted."""
    intermediate_before: int | None = None
    """Neurons of a feed-forward block; None when none was dropped."""
    intermediate_after: int | None = None
    vocabulary_before: int
    vocabulary_after: int
    coverage: dict[str, float] = {}
    """Split to the share of its tokens that are kept, 0 to 1; empty when no token was dropped."""
    positions_before: int | None = None
    """None where the model has no learned table of positions."""
    positions_after: int | None = None

    def numbers(self) -> dict[str, float]:
        """Returns the sizes of the student, and the share of each split's tokens that is kept."""
        sizes = {
            "parameters": float(self.parameters_after),
            "layers": float(len(self.layers_kept)),
            "vocabulary": float(self.vocabulary_after),
        }
        return sizes | {f"coverage_{split}": share for split, share in self.coverage.items()}

    def summary(self) -> str:
        """Returns one sentence for people."""
        parts = [f"{self.parameters_before:,} -> {self.parameters_after:,} parameters"]
        if len(self.layers_kept) != self.layers_before:
            parts.append(f"layers {' '.join(map(str, self.layers_kept))} of {self.layers_before}")
        if self.errors_after_refit and self.errors_before_refit:
            last = self.errors_before_refit[-1], self.errors_after_refit[-1]
            parts.append(f"refit: the last layer's error {last[0]:.3g} -> {last[1]:.3g}")
        if self.intermediate_after is not None:
            parts.append(f"neurons {self.intermediate_before} -> {self.intermediate_after}")
        if self.vocabulary_after != self.vocabulary_before:
            shares = ", ".join(f"{share:.1%} of {split}" for split, share in self.coverage.items())
            parts.append(f"vocabulary {self.vocabulary_before} -> {self.vocabulary_after} ({shares})")
        if self.positions_after != self.positions_before:
            parts.append(f"positions {self.positions_before} -> {self.positions_after}")
        return "; ".join(parts)


def prune(inputs: StageInputs, config: PruneConfig, context: StageContext) -> Artifact:
    """Makes a student that keeps some of the model's layers, neurons, tokens and positions.

    Their weights are unchanged but for the last linear of each layer with `refit`.

    Raises:
        UsageError: a number is out of range, or the data that it needs was not given.
        DataError: a split is missing.
        UnsupportedError: the model or its tokenizer cannot be cut so.
    """
    from edgekit.data.prepared import PreparedData
    from edgekit.models.source import load_model, save_model
    from edgekit.pruning.choice import choose
    from edgekit.pruning.cut import cut_model, require_same_outputs

    loaded = load_model(inputs.require("model", STAGE))
    _require_unquantized(loaded)
    measures = config.refit or config.choose == "influence" or config.intermediate_size is not None
    data = PreparedData.open(inputs.require("data", STAGE)) if config.trims_vocabulary or measures else None
    choice = choose(loaded, data, config, context)
    student = cut_model(loaded.model, choice.cut)
    require_same_outputs(loaded.model, student, choice.cut, context.seed)
    report = _report(loaded, student, choice)
    if config.refit and data is not None:
        report = _refit((loaded, student), data, report, config, context)
    with publish(context.out, kind="model", lineage=lineage_of(STAGE, inputs, config, context)) as directory:
        save_model(replace(loaded, model=student, tokenizer=choice.tokenizer), directory)
        (directory / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    context.events(Event("message", stage=STAGE, text=report.summary(), values=report.numbers()))
    return Artifact.open(context.out, kind="model")


def _refit(
    models: tuple[LoadedModel, PreTrainedModel],
    data: PreparedData,
    report: PruneReport,
    config: PruneConfig,
    context: StageContext,
) -> PruneReport:
    """Changes the student, the second of `models`, and returns the report with what that did."""
    from edgekit.pruning.choice import calibration_batches
    from edgekit.pruning.refit import refit_layers

    loaded, student = models
    batches = list(calibration_batches(loaded, data, config.calibration_rows, context, "what to refit on"))
    fits = refit_layers(loaded.model, student, report.layers_kept, batches, config.refit_ridge)
    total = len(report.layers_kept)
    done = list(track(fits, context.events, stage=STAGE, text="refitting", total=total, unit="layers"))
    return report.model_copy(
        update={
            "errors_before_refit": [fit.before for fit in done],
            "errors_after_refit": [fit.after for fit in done],
        }
    )


def _report(loaded: LoadedModel, student: PreTrainedModel, choice: Choice) -> PruneReport:
    from edgekit.models.structure import find_embeddings, read_sizes
    from edgekit.pruning.feed_forward import find_feed_forwards

    before, after = find_embeddings(loaded.model), find_embeddings(student)
    layers = read_sizes(loaded.model.config).layers
    return PruneReport(
        parameters_before=loaded.model.num_parameters(),
        parameters_after=student.num_parameters(),
        layers_before=layers,
        layers_kept=list(range(layers) if choice.cut.layers is None else choice.cut.layers),
        block_influence=None if choice.influence is None else list(choice.influence),
        intermediate_before=None if choice.cut.neurons is None else find_feed_forwards(loaded.model)[0].size,
        intermediate_after=None if choice.cut.neurons is None else len(choice.cut.neurons[0]),
        vocabulary_before=before.word.rows,
        vocabulary_after=after.word.rows,
        coverage=choice.coverage,
        positions_before=before.position.positions if before.position else None,
        positions_after=after.position.positions if after.position else None,
    )


def _require_unquantized(loaded: LoadedModel) -> None:
    from edgekit.models.quantized import schemes_of

    quantized = schemes_of(loaded.model)
    if quantized:
        raise UnsupportedError(
            f"prune: the model is quantized ({len(quantized)} modules, first '{next(iter(quantized))}'); expected one "
            "of float weights. Prune before you quantize."
        )
