"""The stages `evaluate` (quality on labelled text) and `bench` (latency and memory in fresh processes)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter

from edgekit.artifact import Artifact, publish
from edgekit.benchmarking.memory_limit import require_limits
from edgekit.benchmarking.questions import QuestionsConfig
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import ArtifactError, UsageError
from edgekit.results import AnyMeasurement, AnyQuality, Comparison, GenerationComparison, Sweep

if TYPE_CHECKING:
    from edgekit.benchmarking.predictions import Logits, Rows

QUALITY_FILE = "quality.json"
MEASUREMENT_FILE = "measurement.json"
COMPARISON_FILE = "comparison.json"


class EvaluateConfig(StageConfig):
    """What to judge a model on."""

    splits: list[str] = Field(default=["test"], min_length=1)
    """Splits of the data to evaluate on, all their rows together; for a classifier they must have labels."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows to evaluate, from the start of each split; all by default."""
    batch_size: int | None = Field(default=None, ge=1)
    """Texts a call. By default 1 for an export, as it ships, and 64 for a torch model."""
    max_tokens: int = Field(default=512, ge=2)
    """Language models: tokens of each text that are judged, from its start; at most the model's context."""
    multiple_choice: QuestionsConfig | None = None
    """Language models: questions to answer besides, each with a few possible answers."""
    runtime: str | None = None
    """Runtime to run the model with; by default the one that opens such a model."""


class BenchConfig(StageConfig):
    """What to measure, and for how long."""

    runtime: str | None = None
    """Runtime to measure with; by default the one that opens such a model."""
    sweep_runtimes: list[str] = []
    """Further runtimes, measured in turn with the first."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads that one call may use; the process is pinned to as many cores."""
    sweep_threads: list[Annotated[int, Field(ge=1, le=1024)]] = []
    """Further numbers of threads, measured in turn with the first."""
    batch: int = Field(default=1, ge=1)
    """Rows a call."""
    length: int = Field(default=64, ge=1)
    """Tokens a row, all of them attended to."""
    inputs: Literal["random", "texts"] = "random"
    """`random` draws token ids from the seed; `texts` takes those of real texts, of the data's test split. A language
    model goes on from real texts whenever there is data."""
    depths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Language models: tokens of the prompts to write after; by default 16, 128 and 512, as far as there is room."""
    new_tokens: int = Field(default=32, ge=1)
    """Language models: tokens written after the first one in each run."""
    min_samples: int = Field(default=30, ge=2)
    """Samples at least; of a language model see `min_runs`."""
    min_runs: int = Field(default=6, ge=2)
    """Language models: runs at each depth at least; 6 bound a median from both sides."""
    min_seconds: float = Field(default=3.0, gt=0)
    """Seconds of sampling at least."""
    interval_width: float | None = Field(default=None, gt=0, lt=1)
    """Sampling goes on until the 95 % interval is at most this share of its value wide (0.02: 2 %), up to
    `max_seconds`: of p50, of the ratio of two classifiers, of a language model's decode speed at every depth, there
    0.06 by default."""
    decide_p95_ms: float | None = Field(default=None, gt=0)
    """A p95 limit to decide: sampling goes on until the interval clears it, up to `max_seconds`."""
    max_seconds: float = Field(default=30.0, gt=0)
    """Seconds of sampling at most when a limit is to be decided or an interval is still wide."""
    pairs: int = Field(default=8, ge=5)
    """With a reference, classifiers: fresh pairs of processes in which the two take turns; whole pairs are what the
    interval of their ratio draws."""
    margin: float = Field(default=0.03, gt=0, lt=1)
    """With a reference: differences of speed up to this share do not count in the verdict."""
    memory_limit_mib: Literal["smallest"] | Annotated[int, Field(ge=1)] | None = None
    """Memory that the model's process may have, MiB (RLIMIT_DATA, Linux): not to run in it is an error. A reference has
    no limit.
    `smallest` measures without a limit and then finds the smallest one that the model still runs in."""
    energy_csv: str | None = None
    """File of a power meter, with the columns time and watts, that is written meanwhile; by default the processor's
    RAPL counters, where there are any."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one call, or the load, may take before it counts as hung."""

    @property
    def memory_limit_bytes(self) -> int | None:
        """Returns the limit that is set, or None."""
        return self.memory_limit_mib * 2**20 if isinstance(self.memory_limit_mib, int) else None

    @property
    def energy_file(self) -> Path | None:
        """Returns the meter's file, or None."""
        return None if self.energy_csv is None else Path(self.energy_csv)


def evaluate(inputs: StageInputs, config: EvaluateConfig, context: StageContext) -> Artifact:
    """Measures the quality of a model; the teacher may be a model or, for a classifier, its evaluation.

    The artifact holds `quality.json`; for a classifier also `logits.npy`, float32 (rows, classes) in the order of the
    data's labels, so that later models are compared with this one row by row without running it again.

    Raises:
        DataError: a split is missing, empty or, for a classifier, without labels.
        ModelError: the labels of model and data differ, or a token of the model is not one of the teacher's.
        UsageError: the teacher was evaluated on other rows, or no runtime opens the model.
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
        (directory / QUALITY_FILE).write_text(quality.model_dump_json(indent=2) + "\n", encoding="utf-8")
        np.save(directory / LOGITS_FILE, logits, allow_pickle=False)
    return Artifact.open(context.out)


def _evaluate_language(inputs: StageInputs, config: EvaluateConfig, context: StageContext) -> Artifact:
    from edgekit.benchmarking.language_predictions import Reading, answer, score_documents
    from edgekit.benchmarking.language_quality import judge_language

    model, data = inputs.require("model", "evaluate"), inputs.require("data", "evaluate")
    memory = context.memory and context.memory / "teacher-states"
    reading = Reading(config.splits, config.max_rows, config.max_tokens, config.runtime, memory)
    scores = score_documents(model, inputs.teacher, data, reading, context.events)
    quality = judge_language(scores, seed=context.seed).model_copy(update={"model_digest": model.digest})
    if config.multiple_choice is not None:
        answered = answer(model, inputs.teacher, config.multiple_choice, reading, context.events)
        quality = quality.model_copy(update={"multiple_choice": answered})
    with publish(context.out, kind="quality", lineage=lineage_of("evaluate", inputs, config, context)) as directory:
        (directory / QUALITY_FILE).write_text(quality.model_dump_json(indent=2) + "\n", encoding="utf-8")
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
    if config.memory_limit_mib is not None:
        require_limits()
    if config.energy_file is not None:
        from edgekit.benchmarking.energy import read_meter

        read_meter(config.energy_file)  # a mistake in it is told before anything is measured
    if is_language_model(inputs.require("model", "bench")):
        from edgekit.benchmarking.generation_stage import bench_language_model

        return bench_language_model(inputs, config, context)
    from edgekit.benchmarking.classifier_stage import bench_classifier

    return bench_classifier(inputs, config, context)


def read_quality(artifact: Artifact) -> AnyQuality:
    """Returns the result in a `quality` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    found: AnyQuality = TypeAdapter(AnyQuality).validate_json(_read(artifact, "quality", QUALITY_FILE))
    return found


def read_measurement(artifact: Artifact) -> AnyMeasurement:
    """Returns the measurement of the model in a `measurement` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    text = _read(artifact, "measurement", MEASUREMENT_FILE)
    found: AnyMeasurement = TypeAdapter(AnyMeasurement).validate_json(text)
    return found


def read_comparison(artifact: Artifact) -> Comparison | None:
    """Returns the comparison in a `measurement` artifact; None when the model was measured alone.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    if artifact.kind == "measurement" and COMPARISON_FILE not in artifact.files:
        return None
    return Comparison.model_validate_json(_read(artifact, "measurement", COMPARISON_FILE))


def read_sweep(artifact: Artifact) -> Sweep | None:
    """Returns all classifiers that a `measurement` artifact holds; None where no sweep was asked for.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    from edgekit.benchmarking.classifier_stage import SWEEP_FILE

    if artifact.kind == "measurement" and SWEEP_FILE not in artifact.files:
        return None
    return Sweep.model_validate_json(_read(artifact, "measurement", SWEEP_FILE))


def read_generation_comparison(artifact: Artifact) -> GenerationComparison | None:
    """Returns all that was measured in turn in a `measurement` artifact; None where it was one language model alone.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    from edgekit.benchmarking.generation_stage import GENERATION_COMPARISON_FILE

    if artifact.kind == "measurement" and GENERATION_COMPARISON_FILE not in artifact.files:
        return None
    return GenerationComparison.model_validate_json(_read(artifact, "measurement", GENERATION_COMPARISON_FILE))


def is_language_model(model: Artifact) -> bool:
    """Returns whether an artifact is a language model.

    Raises:
        ModelError: its `task.json` is missing or not valid.
    """
    from edgekit.models.tasks import read_task

    return read_task(model).kind == "causal-lm"


def _read(artifact: Artifact, kind: str, name: str) -> str:
    if artifact.kind != kind:
        raise ArtifactError(f"{artifact.path}: found an artifact of kind '{artifact.kind}', expected '{kind}'.")
    return (artifact.path / name).read_text(encoding="utf-8")


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
