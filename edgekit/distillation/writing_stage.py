"""The stage `write`: data in, the same data out with the teacher's own words in the training text.

Sequence-level distillation (Kim and Rush, "Sequence-Level Knowledge Distillation", arXiv:1606.07947): the student then
learns the teacher's answers with `finetune` or `distill`. Validation and test text stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, publish, require_absent
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.distillation.config import WriteConfig
from edgekit.errors import UnsupportedError
from edgekit.events import Event
from edgekit.models.tasks import read_task

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.data.documents import Document
    from edgekit.data.prepared import PreparedData

__all__ = ["WriteConfig", "write"]


def write(inputs: StageInputs, config: WriteConfig, context: StageContext) -> Artifact:
    """Lets the teacher continue every prompt of the split `train` and returns the data with what it wrote.

    A row for which it wrote nothing is left out. Parts are kept in the work directory, so a killed run goes on; several
    processes share them.

    Raises:
        UnsupportedError: the teacher is no language model.
        DataError: the data holds no documents, or the teacher wrote nothing at all.
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
    documents = write_documents(loaded, data, config, context, accelerator)
    lineage = lineage_of("write", inputs, config, context)
    if accelerator.is_main_process:
        with publish(context.out, kind="data", lineage=lineage) as staging:
            _publish_splits(staging, data, documents)
        skipped = data.rows["train"] - len(documents)
        text = f"{len(documents):,} rows written, {skipped:,} left out: nothing was written for them."
        context.events(Event("message", "write", text))
    wait_for_all("write", accelerator, has_published=bool(accelerator.is_main_process))
    return Artifact.open(context.out, kind="data")


def _publish_splits(staging: Path, data: PreparedData, documents: list[Document]) -> None:
    """Writes `train` anew and copies the other splits."""
    import shutil

    import pyarrow
    import pyarrow.parquet as parquet

    from edgekit.data.documents import schema_of, to_cells
    from edgekit.data.prepared import DATA_FILE, DataDescription, write_description

    for name in data.rows:
        if name != "train":
            shutil.copyfile(data.path / f"{name}.parquet", staging / f"{name}.parquet")
    table = pyarrow.Table.from_pylist(list(map(to_cells, documents)), schema=schema_of(data.forms["train"]))
    parquet.write_table(table, staging / "train.parquet", compression="zstd")
    description = DataDescription.model_validate_json((data.path / DATA_FILE).read_text(encoding="utf-8"))
    splits = {**description.splits, "train": len(documents)}
    write_description(staging, description.model_copy(update={"splits": splits}))
