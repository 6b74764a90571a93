"""The stages `finetune`, `capture` and `distill`: artifacts in, an artifact out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, overload

from pydantic import JsonValue

from edgekit._version import __version__
from edgekit.artifact import Artifact, Kind, Lineage, hash_json, publish, require_absent
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.distillation.config import (
    CaptureConfig,
    DistillConfig,
    FinetuneConfig,
    LayerPair,
    Precision,
    Schedule,
    TrainingConfig,
    token_capture_config,
)
from edgekit.errors import UnsupportedError
from edgekit.models.tasks import read_task, require_trained_head

if TYPE_CHECKING:
    from edgekit.data.prepared import PreparedData
    from edgekit.distillation.signal import CaptureRun, Signal
    from edgekit.distillation.trainer import Run

__all__ = [
    "CaptureConfig",
    "DistillConfig",
    "FinetuneConfig",
    "LayerPair",
    "Precision",
    "Schedule",
    "TrainingConfig",
    "capture",
    "capture_config",
    "distill",
    "finetune",
]


def finetune(inputs: StageInputs, config: FinetuneConfig, context: StageContext) -> Artifact:
    """Trains a model on labelled text and returns the one that was best on the validation split.

    Raises:
        DataError: the data's labels are not the model's, a split is empty, or only one class is there.
        UnsupportedError: the model is quantized.
        TrainingError: the loss is not finite.
    """
    from edgekit.data.prepared import PreparedData
    from edgekit.distillation.language_session import train_language_model
    from edgekit.distillation.material import check_data_labels
    from edgekit.distillation.session import train_on_labels
    from edgekit.models.source import load_model, save_model

    require_absent(context.out)
    model = inputs.require("model", "finetune")
    data = PreparedData.open(inputs.require("data", "finetune"))
    _require_floats(model, "finetune")
    check_data_labels(data, read_task(model), "model")
    loaded = load_model(model)
    run = _run("finetune", inputs, config, context)
    if loaded.task.kind == "causal-lm":
        train_language_model(loaded, data, config, run)
    else:
        train_on_labels(loaded, data, config, run)
    loaded.head_trained = True
    lineage = lineage_of("finetune", inputs, config, context)
    return _publish(context.out, "model", lineage, lambda directory: save_model(loaded, directory))


def capture(inputs: StageInputs, config: CaptureConfig, context: StageContext) -> Artifact:
    """Runs a teacher over the training text and returns its outputs as an artifact.

    Of a classifier these are its logits, for the unlabelled text as well; of a language model what `config.language`
    says, for every token that is learned. A language model reads the text with the tokenizer of `inputs.model`, the
    student, where one is given and its vocabulary is another.

    Raises:
        DataError: the data's labels are not the teacher's, or a text cannot be turned into tokens.
        ModelError: a token of the student is not one of the teacher's, or the teacher's head was never trained.
        UsageError: more than 300 bytes a token would be kept.
        TrainingError: a logit is not finite.
        EnvironmentLacksError: the disk is full; what is finished is kept in the work directory.
    """
    from edgekit.data.prepared import PreparedData
    from edgekit.distillation.material import check_data_labels
    from edgekit.distillation.signal import capture_logits, describe, write_signal
    from edgekit.models.source import load_model

    require_absent(context.out)
    teacher, data_artifact = inputs.require("teacher", "capture"), inputs.require("data", "capture")
    data = PreparedData.open(data_artifact)
    check_data_labels(data, read_task(teacher), "teacher")
    require_trained_head(teacher, "capture")
    run = _capture_run("capture", teacher, data_artifact, config, context)
    lineage = lineage_of("capture", inputs, config, context)
    if read_task(teacher).kind == "causal-lm":
        return _capture_tokens(inputs, data, config, run, context)
    loaded = load_model(teacher)
    signal = capture_logits(loaded, data, config, run)
    description = describe(teacher, data_artifact, loaded, signal)
    return _publish(context.out, "signal", lineage, lambda directory: write_signal(directory, signal, description))


def distill(inputs: StageInputs, config: DistillConfig, context: StageContext) -> Artifact:
    """Trains a student on its teacher's outputs and returns the one that was best on the validation split.

    Raises:
        ModelError: teacher and student differ in their labels, or the teacher's head was never trained.
        DataError: the data's labels are not theirs, a split is empty, or only one class is there.
        ArtifactError: the signal is of another teacher or other data.
        UnsupportedError: the student is quantized, or its layers cannot be matched.
        TrainingError: the loss is not finite.
    """
    from edgekit.data.prepared import PreparedData
    from edgekit.distillation.language_session import train_language_student
    from edgekit.distillation.material import check_data_labels, check_teacher_labels
    from edgekit.distillation.session import train_student
    from edgekit.models.source import load_model, save_model

    require_absent(context.out)
    model, teacher = inputs.require("model", "distill"), inputs.require("teacher", "distill")
    data = PreparedData.open(inputs.require("data", "distill"))
    _require_floats(model, "distill")
    check_teacher_labels(read_task(model), read_task(teacher))
    check_data_labels(data, read_task(teacher), "teacher")
    require_trained_head(teacher, "distill")
    student = load_model(model)
    run = _run("distill", inputs, config, context)
    if student.task.kind == "causal-lm":
        train_language_student(student, inputs, data, config, run)
    else:
        train_student(student, teacher, (data, _signal(inputs, data, config, context)), config, run)
    student.head_trained = True
    lineage = lineage_of("distill", inputs, config, context)
    return _publish(context.out, "model", lineage, lambda directory: save_model(student, directory))


@overload
def capture_config(config: DistillConfig) -> CaptureConfig: ...


@overload
def capture_config(config: DistillConfig, task: str) -> CaptureConfig | None: ...


def capture_config(config: DistillConfig, task: str = "text-classification") -> CaptureConfig | None:
    """Returns the capture that a distillation with `config` needs; None for a language model's online teacher.

    Args:
        config: the distillation's.
        task: what teacher and student are for, a name of `models/tasks.py`.
    """
    if config.language.signal != "online":
        return token_capture_config(config)
    if task == "causal-lm":
        return None
    return CaptureConfig(use_unlabelled=config.use_unlabelled, precision=config.precision)


def _capture_tokens(
    inputs: StageInputs, data: PreparedData, config: CaptureConfig, run: CaptureRun, context: StageContext
) -> Artifact:
    """Returns what is kept of a language model, as an artifact."""
    from edgekit.distillation.capture_session import capture_language, workplace
    from edgekit.distillation.signal_capture import assemble
    from edgekit.models.tokenizer import load_tokenizer

    teacher = inputs.require("teacher", "capture")
    reader = None if inputs.model is None else load_tokenizer(inputs.model.path)
    with workplace(context.work_directory) as folder:
        plan = capture_language(teacher, reader, data, config, run, folder)
        lineage = lineage_of("capture", inputs, config, context)
        return _publish(context.out, "signal", lineage, lambda directory: assemble(folder / "signal", plan, directory))


def _signal(inputs: StageInputs, data: PreparedData, config: DistillConfig, context: StageContext) -> Signal:
    """Returns the teacher's logits: those of the signal artifact, or captured now."""
    from edgekit.distillation.signal import capture_logits, captured_splits, read_signal
    from edgekit.models.source import load_model

    teacher, data_artifact = inputs.require("teacher", "distill"), inputs.require("data", "distill")
    if inputs.signal is not None:
        splits = captured_splits(data, use_unlabelled=config.use_unlabelled)
        return read_signal(inputs.signal, teacher, data_artifact, splits)
    settings = capture_config(config)
    run = _capture_run("distill", teacher, data_artifact, settings, context)
    return capture_logits(load_model(teacher), data, settings, run)


def _require_floats(model: Artifact, stage: str) -> None:
    from edgekit.models.source import QUANTIZATION_FILE

    if (model.path / QUANTIZATION_FILE).is_file():
        raise UnsupportedError(
            f"{stage}: {model.path}: found a quantized model, whose codes cannot be trained; expected float weights. "
            f"Put '{stage}' before 'quantize'."
        )


def _run(stage: str, inputs: StageInputs, config: TrainingConfig, context: StageContext) -> Run:
    from edgekit.distillation.trainer import Run

    digests: dict[str, JsonValue] = {role: artifact.digest for role, artifact in inputs.present().items()}
    fingerprint = _fingerprint(digests, config, context)
    return Run(stage, context.seed, context.events, context.work_directory, fingerprint)


def _capture_run(
    stage: str, teacher: Artifact, data: Artifact, config: CaptureConfig, context: StageContext
) -> CaptureRun:
    from edgekit.distillation.signal import CaptureRun

    digests: dict[str, JsonValue] = {"teacher": teacher.digest, "data": data.digest}
    fingerprint = _fingerprint(digests, config, context)
    return CaptureRun(stage, context.events, context.work_directory, fingerprint, context.seed)


def _fingerprint(digests: dict[str, JsonValue], config: StageConfig, context: StageContext) -> str:
    """Returns what tells one run from another: edgekit's version, inputs, config and seed."""
    return hash_json(
        {
            "version": __version__,
            "inputs": digests,
            "config": config.model_dump(mode="json"),
            "seed": context.seed,
        }
    )


def _publish(out: Path, kind: Kind, lineage: Lineage, fill: Callable[[Path], None]) -> Artifact:
    """Publishes what `fill` writes, on the main process alone, and returns it on every process."""
    from accelerate import PartialState

    from edgekit.distillation.processes import wait_for_all

    state = PartialState()
    if state.is_main_process:
        with publish(out, kind=kind, lineage=lineage) as directory:
            fill(directory)
    wait_for_all(lineage.stage, state, has_published=bool(state.is_main_process))
    return Artifact.open(out, kind=kind)
