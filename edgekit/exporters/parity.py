"""The parity gate: an exported file, run by the runtime that ships it, against torch running the same weights.

Real texts at mixed lengths go through both sides in batches of one and more, padded and not; the bundled tokenizer file is
compared with transformers' on the same texts and on texts that tokenizers are known to disagree on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, ParityError
from edgekit.events import EventSink, track
from edgekit.results import Parity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
    Logits = NDArray[np.float32]

PARITY_FILE = "parity.json"
_EXTRA_PADDING = 5
_SHOWN_TEXT = 40


@dataclass(frozen=True)
class Thresholds:
    """What an export must keep to."""

    max_abs_diff: float
    """Largest difference of any logit."""
    mean_abs_diff: float
    """Mean difference over all logits."""
    label_agreement: float
    """Share of texts with the same label, 0 to 1."""


@dataclass(frozen=True)
class Differences:
    """How far the two sides are apart on the same batches."""

    rows: int
    max_abs: float
    mean_abs: float
    label_agreement: float


def make_batches(ids: Sequence[list[int]], batch_sizes: Sequence[int], pad_id: int) -> list[Batch]:
    """Returns every text once for each batch size, in the given order, so that lengths mix and short rows are padded.

    Batches of one are unpadded, but each fourth of them is padded on the right: an attention mask that is ignored shows.
    """
    from edgekit.data.preprocessing import pad

    batches: list[Batch] = []
    for size in batch_sizes:
        for start in range(0, len(ids), size):
            input_ids, mask = pad([list(row) for row in ids[start : start + size]], pad_id)
            if size == 1 and start % 4 == 3:
                input_ids, mask = _padded_more(input_ids, pad_id), _padded_more(mask, 0)
            batches.append((input_ids, mask))
    return batches


def compare_logits(expected: Sequence[Logits], found: Sequence[Logits]) -> Differences:
    """Returns the differences over all batches, each (rows, classes); one that is not finite counts as infinite."""
    import numpy as np

    reference, other = np.concatenate(list(expected)).astype(np.float64), np.concatenate(list(found)).astype(np.float64)
    difference = np.abs(reference - other)
    difference[~np.isfinite(difference)] = np.inf
    agreement = (reference.argmax(axis=1) == other.argmax(axis=1)).mean()
    return Differences(len(reference), float(difference.max()), float(difference.mean()), float(agreement))


def run_torch(model: Artifact, export: Artifact, batches: Sequence[Batch], events: EventSink) -> list[Logits]:
    """Returns the logits of the torch model that the export was made from, on each batch."""
    import torch

    from edgekit.exporters.reference import load_reference
    from edgekit.runtimes.protocol import select_inputs

    network = load_reference(model, export)
    names = input_names(export)
    results = []
    with torch.inference_mode():
        for batch in track(batches, events, stage="check", text="torch", total=len(batches), unit="batches"):
            arrays = select_inputs(names, *batch)
            outputs = network(**{name: torch.from_numpy(array) for name, array in arrays.items()})
            results.append(outputs.logits.float().numpy())
    return results


def input_names(export: Artifact) -> list[str]:
    """Returns the names of an export's inputs."""
    from edgekit.runtimes.protocol import SessionConfig, runtime_for

    return list(runtime_for(export).open(export, SessionConfig()).input_names)


def run_export(export: Artifact, runtime: str | None, batches: Sequence[Batch], events: EventSink) -> list[Logits]:
    """Returns the export's logits on each batch, run as it ships: one thread, default graph optimization."""
    from edgekit.runtimes.protocol import SessionConfig, runtime_for, select_inputs

    session = runtime_for(export, runtime).open(export, SessionConfig())
    tracked = track(batches, events, stage="check", text=runtime or "runtime", total=len(batches), unit="batches")
    return [session.run(select_inputs(session.input_names, *batch))["logits"] for batch in tracked]


def tokenizer_differences(model: Artifact, export: Artifact, texts: Sequence[str], max_length: int) -> list[str]:
    """Returns the texts that the export's bare tokenizer file encodes otherwise than transformers does for the model."""
    from edgekit.models.tokenizer import TOKENIZER_FILE, load_bare_tokenizer, load_tokenizer, tokenizer_vectors

    expected = tokenizer_vectors(load_tokenizer(model.path), texts, max_length)
    found = tokenizer_vectors(load_bare_tokenizer(export.path / TOKENIZER_FILE), texts, max_length)
    return [one.text for one, other in zip(expected, found, strict=True) if one.input_ids != other.input_ids]


def judge(
    differences: Differences, mismatches: Sequence[str], texts: int, thresholds: Thresholds, runtime: str
) -> Parity:
    """Returns the verdict: passed when every threshold holds and no text is encoded otherwise."""
    failures = []
    if not differences.max_abs <= thresholds.max_abs_diff:
        failures.append(f"max_abs_diff: found {differences.max_abs:.3g}, limit {thresholds.max_abs_diff:g}.")
    if not differences.mean_abs <= thresholds.mean_abs_diff:
        failures.append(f"mean_abs_diff: found {differences.mean_abs:.3g}, limit {thresholds.mean_abs_diff:g}.")
    if not differences.label_agreement >= thresholds.label_agreement:
        found = f"{differences.label_agreement:.4f}"
        failures.append(f"label_agreement: found {found}, at least {thresholds.label_agreement:g} expected.")
    if mismatches:
        shown = mismatches[0] if len(mismatches[0]) <= _SHOWN_TEXT else mismatches[0][:_SHOWN_TEXT] + "..."
        failures.append(f"tokenizer: {len(mismatches)} of {texts} texts are encoded otherwise, the first is {shown!r}.")
    return Parity(
        runtime=runtime,
        rows=differences.rows,
        max_abs_diff=differences.max_abs,
        mean_abs_diff=differences.mean_abs,
        label_agreement=differences.label_agreement,
        tokenizer_mismatches=len(mismatches),
        tokenizer_texts=texts,
        passed=not failures,
        failures=failures,
    )


def read_parity(artifact: Artifact) -> Parity:
    """Returns the result in a `parity` artifact.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    if artifact.kind != "parity":
        raise ArtifactError(f"{artifact.path}: found an artifact of kind '{artifact.kind}', expected 'parity'.")
    return Parity.model_validate_json((artifact.path / PARITY_FILE).read_text(encoding="utf-8"))


def require_parity(parity: Parity) -> None:
    """Refuses an export that failed.

    Raises:
        ParityError: naming each threshold that did not hold.
    """
    if not parity.passed:
        raise ParityError("parity failed:\n" + "\n".join(parity.failures))


def _padded_more(rows: NDArray[np.int64], value: int) -> NDArray[np.int64]:
    import numpy as np

    return np.pad(rows, ((0, 0), (0, _EXTRA_PADDING)), constant_values=value)
