"""The stage `autotune`: measures each way of writing a quantized model's linears on a runtime, and keeps the choice."""

from __future__ import annotations

from pydantic import Field

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of


class AutotuneConfig(StageConfig):
    """On what each linear of a model is measured, and for how long."""

    runtime: str = "onnxruntime"
    """Runtime to measure with; one that opens onnx."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads that one call may use; the process is pinned to as many cores."""
    batch: int = Field(default=1, ge=1)
    """Rows a call."""
    length: int | None = Field(default=None, ge=1)
    """Tokens a row; by default 64, and 1 for language models, which write one token after another."""
    first_token: bool = True
    """Classifiers, as in the export: compute the last layer for the first token alone where nothing else reaches the
    logits."""
    logits_to_keep: int = Field(default=1, ge=0)
    """Language models, as in the export: how many of the last tokens get logits, 0 for all."""
    min_samples: int = Field(default=30, ge=2)
    """Samples of each way of writing a linear at least."""
    min_seconds: float = Field(default=1.0, gt=0)
    """Seconds of sampling each at least."""
    pairs: int = Field(default=6, ge=5)
    """Fresh sets of processes, one process for each way of writing a linear, that take turns; whole sets are what the
    interval of a ratio draws."""
    margin: float = Field(default=0.03, gt=0, lt=1)
    """A way of writing must be faster than the usual one by more than this share to replace it."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one call, or the load, may take before it counts as hung."""


def autotune(inputs: StageInputs, config: AutotuneConfig, context: StageContext) -> Artifact:
    """Chooses for each shape of a linear on codes how an export writes it: the fastest way of those that keep codes.

    Every way is first run by the runtime and compared with torch; what computes something else does not come into
    question. The result depends on the machine: a cache must count `machine_fingerprint()` among the inputs.

    Raises:
        UnsupportedError: a model that cannot be traced, or a scheme without an operator.
        UsageError: no linear holds codes, more threads than cores, or a runtime that does not open onnx.
        ModelError: the model cannot be read.
        ParityError: the runtime computes no way of writing a linear as torch does.
        MeasurementError: a measuring process died or hung.
        EnvironmentLacksError: the runtime is missing.
    """
    from edgekit.exporters.lowering_choice import CHOICE_FILE
    from edgekit.tuning.tuner import tune

    model = inputs.require("model", "autotune")
    choice = tune(model, config, context)
    with publish(context.out, kind="lowering", lineage=lineage_of("autotune", inputs, config, context)) as directory:
        (directory / CHOICE_FILE).write_text(choice.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Artifact.open(context.out)
