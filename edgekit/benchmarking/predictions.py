"""Runs a model over splits of labelled text, with the tokenizer in its own directory, and keeps the logits.

The batch is 1 for an exported file unless told otherwise: that is how it ships, and where activations are rounded to
8 bits with one scale for the whole batch, a text's result depends on its neighbours. For a torch model it is 64, in
batches of like length; with such activations, accuracy may then differ in the second decimal from that of the export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.benchmarking.machine import usable_cores
from edgekit.data.prepared import PreparedData
from edgekit.errors import DataError, ModelError
from edgekit.events import Event, EventSink
from edgekit.models.tasks import TaskConfig, read_task
from edgekit.runtimes.protocol import Session, SessionConfig, pad_token_id, runtime_for, select_inputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]
    Batch = tuple[NDArray[np.int64], NDArray[np.int64]]

LOGITS_FILE = "logits.npy"


@dataclass(frozen=True)
class Rows:
    """Labelled rows, split after split."""

    sizes: dict[str, int]
    """Split to its number of rows, in the order of the rows."""
    texts: list[str]
    labels: list[int]
    """Indices into `names`."""
    names: list[str]
    """Names of the classes, in the data's order."""


def read_rows(data: Artifact, splits: Sequence[str], max_rows: int | None) -> Rows:
    """Returns the labelled rows of `splits`, the first `max_rows` of each.

    Raises:
        DataError: no such split, or it has no rows or no labels.
    """
    opened = PreparedData.open(data)
    rows = Rows({}, [], [], opened.labels)
    for name in dict.fromkeys(splits):
        found = opened.split(name)
        if found.labels is None:
            raise DataError(
                f"{data.path}: the split '{name}' has no labels, expected labelled text to judge models by."
            )
        if not found.texts:
            raise DataError(f"{data.path}: the split '{name}' is empty, expected at least one row.")
        rows.texts.extend(found.texts[:max_rows])
        rows.labels.extend(found.labels[:max_rows])
        rows.sizes[name] = len(found.texts[:max_rows])
    return rows


def default_batch_size(kind: str) -> int:
    """Returns how many rows an artifact of `kind` takes at once: an export one, as in an app."""
    return 64 if kind == "model" else 1


def predict(model: Artifact, rows: Rows, *, runtime: str | None, batch_size: int | None, events: EventSink) -> Logits:
    """Returns the logits, float32 (rows, classes), the columns in the order of the data's labels.

    Raises:
        ModelError: the model's labels are not the data's.
        UsageError: the runtime does not open such a model.
    """
    import numpy as np

    from edgekit.data.preprocessing import encode, length_buckets, pad
    from edgekit.models.tokenizer import TOKENIZER_FILE, load_bare_tokenizer

    task = read_task(model)
    columns = _label_columns(task, rows.names, model)
    tokenizer = load_bare_tokenizer(model.path / TOKENIZER_FILE)
    ids = encode(rows.texts, tokenizer, task.max_length, allow_empty=True, where=f"splits {', '.join(rows.sizes)}")
    batches = length_buckets([len(row) for row in ids], batch_size or default_batch_size(model.kind))
    pad_id = pad_token_id(model)
    logits = np.empty((len(ids), len(task.labels)), dtype=np.float32)

    padded = (pad([ids[row] for row in batch], pad_id) for batch in batches)
    results = run_batches(model, padded, runtime)
    report = _reporter(events, len(ids), model.kind)
    for batch, found in zip(batches, results, strict=True):
        logits[batch] = found
        report(len(batch))
    return logits[:, columns]


def run_batches(model: Artifact, batches: Iterator[Batch], runtime: str | None) -> Iterator[Logits]:
    """Yields the logits of each batch in order, using every core.

    An exported file runs one batch a core at a time, each on one thread: that is faster than many threads on a batch
    of one, and gives the same numbers. A torch model shares its cores within each batch.
    """
    from concurrent.futures import ThreadPoolExecutor

    cores = len(usable_cores()) or 1
    chosen = runtime_for(model, runtime)
    if model.kind == "model":
        session = chosen.open(model, SessionConfig(threads=cores))
        yield from (_run(session, batch) for batch in batches)
        return
    session = chosen.open(model, SessionConfig(threads=1))
    pool = ThreadPoolExecutor(cores)
    try:
        yield from pool.map(lambda batch: _run(session, batch), batches)
    finally:
        pool.shutdown(cancel_futures=True)


def _run(session: Session, batch: Batch) -> Logits:
    logits: Logits = session.run(select_inputs(session.input_names, *batch))["logits"]
    return logits


def _label_columns(task: TaskConfig, names: Sequence[str], model: Artifact) -> list[int]:
    """Returns for each of the data's labels the column of the model's logits that stands for it."""
    if sorted(task.labels) != sorted(names):
        raise ModelError(
            f"{model.path}: its labels are {', '.join(task.labels)}, the data's are {', '.join(names)}; expected the "
            "same. Import the model with the data's labels, or map the labels of the data."
        )
    return [task.labels.index(name) for name in names]


def _reporter(events: EventSink, total: int, kind: str) -> Callable[[int], None]:
    """Returns a function that counts rows and reports about a hundred times in all."""
    step = max(1, total // 100)
    done = 0
    text = "evaluating" if kind == "model" else "evaluating the export"

    def advance(rows: int) -> None:
        nonlocal done
        before, done = done, done + rows
        if done == total or done // step > before // step:
            events(Event("progress", stage="evaluate", text=text, completed=done, total=total, unit="rows"))

    return advance
