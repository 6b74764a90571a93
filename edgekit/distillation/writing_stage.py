"""The stage `write`: data in, the same data out with the teacher's own words in the splits that it answered.

Sequence-level distillation (Kim and Rush, "Sequence-Level Knowledge Distillation", arXiv:1606.07947): the student then
learns the teacher's answers with `finetune` or `distill`. Splits of prompts become conversations; where there are none,
the training text is written anew. All else stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, hash_json, publish, require_absent
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.distillation.config import WriteConfig
from edgekit.errors import DataError, UnsupportedError
from edgekit.events import Event
from edgekit.models.tasks import read_task
from edgekit.spelling import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from edgekit.data.prepared import PreparedData
    from edgekit.distillation.teacher_text import WrittenSplit

__all__ = ["WriteConfig", "write"]


def write(inputs: StageInputs, config: WriteConfig, context: StageContext) -> Artifact:
    """Lets the teacher continue the prompts of splits and returns the data with what it wrote.

    A row for which it wrote nothing is left out. Parts are kept in the work directory, so a killed run goes on; several
    processes share them.

    Raises:
        UnsupportedError: the teacher is no language model.
        DataError: there is no such split, the data holds no documents, or the teacher wrote nothing at all.
        UsageError: a prompt and its continuation may be longer than the teacher's context.
        TrainingError: a logit is not finite.
        EnvironmentLacksError: the disk is full.
    """
    from edgekit.data.prepared import PreparedData
    from edgekit.distillation.processes import make_accelerator, wait_for_all
    from edgekit.distillation.teacher_text import write_documents
    from edgekit.models.source import load_model

    require_absent(context.out)
    teacher, data = inputs.require("teacher", "write"), PreparedData.open(inputs.require("data", "write"))
    if read_task(teacher).kind != "causal-lm":
        raise UnsupportedError(
            f"{teacher.path}: found a model for '{read_task(teacher).kind}', expected a causal language model: no "
            "other writes text."
        )
    loaded = load_model(teacher)
    accelerator = make_accelerator()
    loaded.model.to(accelerator.device)
    splits = splits_to_write(data, config)
    folder = _workplace(inputs, config, context)
    written = {
        split: write_documents(loaded, data, split, config, context, folder and folder / split, accelerator)
        for split in splits
    }
    lineage = lineage_of("write", inputs, config, context)
    if accelerator.is_main_process:
        with publish(context.out, kind="data", lineage=lineage) as staging:
            _publish_splits(staging, data, written)
        for split, found in written.items():
            dropped = " and dropped" if config.cut_answers == "drop" else ""
            text = (
                f"{split}: {len(found.documents):,} rows written, {found.cut:,} cut at {config.max_new_tokens} tokens"
                f"{dropped}, {found.empty:,} left out: nothing was written for them."
            )
            context.events(Event("message", "write", text))
    wait_for_all("write", accelerator, has_published=bool(accelerator.is_main_process))
    return Artifact.open(context.out, kind="data")


def _workplace(inputs: StageInputs, config: WriteConfig, context: StageContext) -> Path | None:
    """Returns where finished parts are kept: what decides on a text has a directory of its own."""
    if context.work_directory is None:
        return None
    decides: dict[str, JsonValue] = {
        "inputs": {role: artifact.digest for role, artifact in inputs.present().items()},
        "config": config.model_dump(mode="json", exclude={"splits", "cut_answers"}),
        "seed": context.seed,
    }
    return context.work_directory / "written" / hash_json(decides)[:16]


def splits_to_write(data: PreparedData, config: WriteConfig) -> list[str]:
    """Returns the splits that are answered, in the data's order.

    Raises:
        DataError: there is no such split.
    """
    if config.splits is None:
        return [name for name, form in data.forms.items() if form == "prompt"] or ["train"]
    for name in config.splits:
        if name not in data.rows:
            raise DataError(
                f"write: splits: no split '{name}'.{did_you_mean(name, data.rows)} Splits: {', '.join(data.rows)}."
            )
    return [name for name in data.rows if name in config.splits]


def _publish_splits(staging: Path, data: PreparedData, written: dict[str, WrittenSplit]) -> None:
    """Writes the splits that were answered anew, prompts as conversations, and copies the others."""
    import shutil

    import pyarrow
    import pyarrow.parquet as parquet

    from edgekit.data.documents import schema_of, to_cells
    from edgekit.data.prepared import DATA_FILE, DataDescription, write_description

    forms = dict(data.forms)
    for name in data.rows:
        if name not in written:
            shutil.copyfile(data.path / f"{name}.parquet", staging / f"{name}.parquet")
            continue
        forms[name] = "chat" if forms[name] == "prompt" else forms[name]
        table = pyarrow.Table.from_pylist(list(map(to_cells, written[name].documents)), schema=schema_of(forms[name]))
        parquet.write_table(table, staging / f"{name}.parquet", compression="zstd")
    description = DataDescription.model_validate_json((data.path / DATA_FILE).read_text(encoding="utf-8"))
    splits = {**description.splits, **{name: len(found.documents) for name, found in written.items()}}
    write_description(staging, description.model_copy(update={"splits": splits, "forms": forms}))
