"""The stages `evaluate` (quality on labelled text) and `bench` (latency and memory in fresh processes)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, publish
from edgekit.benchmarking.config import BenchConfig, EvaluateConfig
from edgekit.benchmarking.devices import HERE
from edgekit.benchmarking.memory_limit import require_limits
from edgekit.benchmarking.result_files import QUALITY_FILE, write_result
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.benchmarking.predictions import Logits, Rows

__all__ = ["BenchConfig", "EvaluateConfig", "bench", "evaluate"]


def evaluate(inputs: StageInputs, config: EvaluateConfig, context: StageContext) -> Artifact:
    """Measures the quality of a model; the teacher may be a model or, for a classifier, its evaluation.

    The artifact holds `quality.json`; for a classifier also `logits.npy`, float32 (rows, classes) in the order of the
    data's labels, so that later models are compared with this one row by row without running it again.

    Raises:
        DataError: a split is missing, empty or, for a classifier, without labels.
        ModelError: the labels of model and data differ, or a token of the model is not one of the teacher's.
        UsageError: the teacher was evaluated on other rows, or no runtime opens the model.
        DataError: a split of conversations, and the model has no chat template, or it fails.
        EnvironmentLacksError: the runtime is not installed.
    """
    if is_language_model(inputs.require("model", "evaluate")):
        return _evaluate_language(inputs, config, context)
    return _evaluate_classifier(inputs, config, context)


def _evaluate_classifier(inputs: StageInputs, config: EvaluateConfig, context: StageContext) -> Artifact:
    import numpy as np

    from edgekit.benchmarking.predictions import LOGITS_FILE, predict, read_rows
    from edgekit.benchmarking.quality import Judged, judge_parts

    model, data = inputs.require("model", "evaluate"), inputs.require("data", "evaluate")
    rows = read_rows(data, config.splits, config.max_rows)
    teacher_logits = _teacher_logits(inputs, rows, config, context)
    logits = predict(model, rows, runtime=config.runtime, batch_size=config.batch_size, events=context.events)
    judged = Judged(logits, np.array(rows.labels, dtype=np.int64), rows.names, rows.sizes)
    quality = judge_parts(judged, teacher_logits)
    quality = quality.model_copy(update={"model_digest": model.digest})
    with publish(context.out, kind="quality", lineage=lineage_of("evaluate", inputs, config, context)) as directory:
        write_result(quality, directory / QUALITY_FILE)
        np.save(directory / LOGITS_FILE, logits, allow_pickle=False)
    return Artifact.open(context.out)


def _evaluate_language(inputs: StageInputs, config: EvaluateConfig, context: StageContext) -> Artifact:
    from edgekit.benchmarking.language_predictions import Reading, answer, answer_conversations, score_documents
    from edgekit.benchmarking.language_quality import judge_language

    model, data = inputs.require("model", "evaluate"), inputs.require("data", "evaluate")
    memory = context.memory and context.memory / "teacher-states"
    reading = Reading(config.splits, config.max_rows, config.max_tokens, config.runtime, memory)
    scores = score_documents(model, inputs.teacher, data, reading, context.events)
    quality = judge_language(scores, seed=context.seed).model_copy(update={"model_digest": model.digest})
    if config.multiple_choice is not None:
        answered = answer(model, inputs.teacher, config.multiple_choice, reading, context.events)
        quality = quality.model_copy(update={"multiple_choice": answered})
    if config.answers:
        said = answer_conversations(model, data, reading, config.answers, config.answer_tokens, context.events)
        quality = quality.model_copy(update={"answers": said})
    with publish(context.out, kind="quality", lineage=lineage_of("evaluate", inputs, config, context)) as directory:
        write_result(quality, directory / QUALITY_FILE)
    return Artifact.open(context.out)


def bench(inputs: StageInputs, config: BenchConfig, context: StageContext) -> Artifact:
    """Measures a model's latency and memory; with a reference, the two take turns and their ratio is given as well.

    Of a language model it measures writing: see `generation_stage.bench_language_model`. The result depends on the
    machine: a cache must count `machine_fingerprint()` among the inputs.

    Raises:
        UsageError: more threads than cores, a length beyond the model's, or no runtime opens the model.
        ModelError: the runtime cannot open the model.
        MeasurementError: a measuring process died or hung.
        MemoryLimitError: a model does not run within the memory limit.
        EnvironmentLacksError: a memory limit, on a system that has none.
    """
    if config.memory_limit_mib is not None and config.device == HERE.name:
        require_limits()
    if config.energy_file is not None:
        from edgekit.benchmarking.energy import read_meter

        read_meter(config.energy_file)  # a mistake in it is told before anything is measured
    if is_language_model(inputs.require("model", "bench")):
        from edgekit.benchmarking.generation_stage import bench_language_model

        return bench_language_model(inputs, config, context)
    from edgekit.benchmarking.classifier_stage import bench_classifier

    return bench_classifier(inputs, config, context)


def is_language_model(model: Artifact) -> bool:
    """Returns whether an artifact is a language model.

    Raises:
        ModelError: its `task.json` is missing or not valid.
    """
    from edgekit.models.tasks import read_task

    return read_task(model).kind == "causal-lm"


def _teacher_logits(inputs: StageInputs, rows: Rows, config: EvaluateConfig, context: StageContext) -> Logits | None:
    """Returns the teacher's logits for `rows`: those that its evaluation kept, or new ones when it is a model."""
    from edgekit.benchmarking.predictions import predict

    teacher = inputs.teacher
    if teacher is None:
        return None
    if teacher.kind != "quality":
        return predict(teacher, rows, runtime=None, batch_size=config.batch_size, events=context.events)
    return _saved_logits(teacher, inputs, config)


def _saved_logits(teacher: Artifact, inputs: StageInputs, config: EvaluateConfig) -> Logits:
    """Returns the logits of an evaluation, after checking that it was made on the same rows."""
    import numpy as np

    from edgekit.benchmarking.predictions import LOGITS_FILE

    data = inputs.require("data", "evaluate")
    made = teacher.lineage
    found = (
        made.inputs["data"].digest if "data" in made.inputs else "",
        made.config.get("splits"),
        made.config.get("max_rows"),
    )
    expected = (data.digest, config.splits, config.max_rows)
    if found != expected:
        raise UsageError(
            f"{teacher.path}: the teacher was evaluated on data {found[0][:12]}, splits {found[1]}, max_rows "
            f"{found[2]}; expected data {expected[0][:12]}, splits {expected[1]}, max_rows {expected[2]}. "
            "Evaluate it on the same rows."
        )
    logits: Logits = np.load(teacher.path / LOGITS_FILE, allow_pickle=False)
    return logits
