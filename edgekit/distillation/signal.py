"""The teacher's outputs, computed once over the text that is learned from or validated on, and kept.

    signal.json            which teacher and which data, how many rows
    signal.safetensors     split to logits, (rows, labels) float32, in the order of the data

While it is computed, finished parts are kept in the work directory, so that a killed capture goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.artifact import Artifact
from edgekit.data.prepared import PreparedData
from edgekit.data.preprocessing import encode, length_buckets, pad
from edgekit.disk import writing
from edgekit.distillation.attention import bf16_attention
from edgekit.distillation.config import CaptureConfig
from edgekit.distillation.learner import observe
from edgekit.distillation.matching import View
from edgekit.distillation.processes import lost_process
from edgekit.errors import ArtifactError, TrainingError
from edgekit.events import Event, EventSink
from edgekit.models.source import LoadedModel

DESCRIPTION_FILE, LOGITS_FILE = "signal.json", "signal.safetensors"
FORMAT = 1
_SPLITS = ("train", "validation", "unlabelled")
_SHARD_ROWS = 1024


class SignalDescription(BaseModel):
    """The content of `signal.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    teacher: str
    """Digest of the teacher."""
    data: str
    """Digest of the data."""
    labels: list[str]
    """Names of the classes, in the order of the logits."""
    max_length: int
    """Tokens after which a text was cut."""
    rows: dict[str, int]
    """Split to its number of rows."""


@dataclass(frozen=True)
class Signal:
    """A teacher's logits."""

    logits: dict[str, NDArray[np.float32]]
    """Split to logits, (rows, labels), in the order of the data."""


@dataclass(frozen=True)
class CaptureRun:
    """Where and for whom a capture runs."""

    stage: str
    events: EventSink
    work_directory: Path | None
    fingerprint: str
    """Tells this capture from any other: parts of another one are not used."""
    seed: int = 0
    """Decides what is drawn."""


def captured_splits(data: PreparedData, *, use_unlabelled: bool) -> list[str]:
    """Returns the names of the splits that a teacher is run on."""
    return [name for name in _SPLITS if name in data.rows and (use_unlabelled or name != "unlabelled")]


def capture_logits(teacher: LoadedModel, data: PreparedData, config: CaptureConfig, run: CaptureRun) -> Signal:
    """Runs the teacher over the text and returns its logits.

    Raises:
        DataError: a text has no tokens.
        TrainingError: a logit is not finite; names the row.
        EnvironmentLacksError: a part cannot be written to the work directory.
    """
    splits = [data.split(name) for name in captured_splits(data, use_unlabelled=config.use_unlabelled)]
    ids: list[list[int]] = []
    for split in splits:
        where = [f"{data.path / split.name}.parquet, {split.row_name(row)}" for row in range(len(split))]
        ids.extend(encode(split.texts, teacher.tokenizer, teacher.task.max_length, where=where))
    logits = np.empty((len(ids), len(teacher.task.labels)), dtype=np.float32)
    for rows, values in _shards(teacher, ids, config, run):
        logits[rows] = values
    ends = np.cumsum([len(split) for split in splits])
    parts = dict(zip([split.name for split in splits], np.split(logits, ends[:-1]), strict=True))
    for split in splits:
        values = parts[split.name]
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            row = f"{split.name} {split.row_name(int(bad[0]))}"
            raise TrainingError(
                f"{run.stage}: the teacher's logits for {row} are {values[bad[0]].tolist()}, expected finite numbers. "
                "Use precision float32, or check the teacher's weights."
            )
    return Signal(parts)


def describe(teacher: Artifact, data: Artifact, loaded: LoadedModel, signal: Signal) -> SignalDescription:
    """Returns what `signal.json` says of a signal."""
    rows = {name: len(values) for name, values in signal.logits.items()}
    return SignalDescription(
        format=FORMAT,
        teacher=teacher.digest,
        data=data.digest,
        labels=loaded.task.labels,
        max_length=loaded.task.max_length,
        rows=rows,
    )


def write_signal(directory: Path, signal: Signal, description: SignalDescription) -> None:
    """Writes `signal.json` and `signal.safetensors` into `directory`."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(values) for name, values in signal.logits.items()}, directory / LOGITS_FILE)
    (directory / DESCRIPTION_FILE).write_text(
        json.dumps(description.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_signal(artifact: Artifact, teacher: Artifact, data: Artifact, splits: list[str]) -> Signal:
    """Returns the signal in `artifact` after checking that it is of this teacher and this data.

    Raises:
        ArtifactError: it is of another teacher or other data, lacks one of `splits`, or is not readable.
    """
    from safetensors.numpy import load_file

    file = artifact.path / DESCRIPTION_FILE
    try:
        description = SignalDescription.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{file}: is not a description of teacher outputs. Run `edgekit capture` again.") from error
    for role, found, expected in (
        ("teacher", description.teacher, teacher),
        ("data", description.data, data),
    ):
        if found != expected.digest:
            raise ArtifactError(
                f"{artifact.path}: was captured with the {role} {found[:16]}..., expected {expected.digest[:16]}... "
                f"({expected.path}). Capture this {role} with `edgekit capture`, or pass no signal."
            )
    missing = [name for name in splits if name not in description.rows]
    if missing:
        raise ArtifactError(
            f"{artifact.path}: holds the teacher's outputs for {', '.join(description.rows)}, not for "
            f"{', '.join(missing)}. Capture them with `edgekit capture`, or distill without use_unlabelled if only "
            "those are missing."
        )
    return Signal(load_file(artifact.path / LOGITS_FILE))


def _shards(
    teacher: LoadedModel, ids: list[list[int]], config: CaptureConfig, run: CaptureRun
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Yields rows and their logits, (rows, labels), part by part; the processes share the parts."""
    from accelerate import Accelerator
    from accelerate.utils import gather_object

    accelerator = Accelerator(mixed_precision="no")
    teacher.model.to(accelerator.device)
    ordered = [row for batch in length_buckets([len(row) for row in ids], _SHARD_ROWS) for row in batch]
    parts = [ordered[start : start + _SHARD_ROWS] for start in range(0, len(ordered), _SHARD_ROWS)]
    directory = run.work_directory / "signal" if run.work_directory else None
    done: dict[int, NDArray[np.float32]] = {}
    finished = 0
    for index in range(accelerator.process_index, len(parts), accelerator.num_processes):
        file = directory / f"part-{index:05d}.safetensors" if directory else None
        values = _read_part(file, run.fingerprint) if file else None
        if values is None:
            values = _run_teacher(teacher, [ids[row] for row in parts[index]], config, accelerator.device)
            if file:
                _write_part(file, values, run.fingerprint)
        done[index] = values
        finished += len(parts[index]) * accelerator.num_processes
        if accelerator.is_main_process:
            event = Event(
                "progress", run.stage, "teacher", completed=min(finished, len(ids)), total=len(ids), unit="rows"
            )
            run.events(event)
    with lost_process(run.stage, accelerator):
        everyone = gather_object([done]) if accelerator.num_processes > 1 else [done]
    for share in everyone:
        for index, values in share.items():
            yield parts[index], values


def _run_teacher(
    teacher: LoadedModel, ids: list[list[int]], config: CaptureConfig, device: torch.device
) -> NDArray[np.float32]:
    """Returns the logits of rows sorted by length, (rows, labels) float32."""
    pad_id = teacher.tokenizer.pad_token_id or 0
    found = []
    with torch.inference_mode(), bf16_attention(teacher.model, config.precision, device):
        for start in range(0, len(ids), config.batch_size):
            input_ids, mask = (
                torch.from_numpy(part).to(device) for part in pad(ids[start : start + config.batch_size], pad_id)
            )
            found.append(observe(teacher.model, View(), input_ids, mask, precision=config.precision).logits.cpu())
    return torch.cat(found).numpy()


def _read_part(file: Path, fingerprint: str) -> NDArray[np.float32] | None:
    """Returns the logits of a finished part; None when there is none of this very capture."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as part:
            if (part.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            values: NDArray[np.float32] = part.get_tensor("logits")
            return values
    except SafetensorError:
        return None


def _write_part(file: Path, values: NDArray[np.float32], fingerprint: str) -> None:
    from safetensors.numpy import save_file

    partial = file.with_name(f".{file.name}.partial")
    advice = "Free disk space, then run the same command again: what is finished is kept."
    with writing(f"{file}:", advice):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logits": values}, partial, metadata={"fingerprint": fingerprint})
        partial.replace(file)
