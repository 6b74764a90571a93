"""The stage `check`: an export against the model it came from, on real text, before anything ships."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import DataError
from edgekit.events import track

if TYPE_CHECKING:
    from edgekit.exporters.parity import Thresholds, TokenizerCheck

_EXACT = (1e-3, 1e-4)
_ROUNDED = (0.05, 0.005)


class CheckConfig(StageConfig):
    """What must hold between an export and its model, and on how much text."""

    max_abs_diff: float | None = Field(default=None, ge=0)
    """Largest difference of any logit. By default 0.001; 0.05 where activations are rounded to 8 bits."""
    mean_abs_diff: float | None = Field(default=None, ge=0)
    """Largest mean difference. By default 0.0001; 0.005 where activations are rounded to 8 bits."""
    label_agreement: float = Field(default=0.99, ge=0, le=1)
    """Smallest share of texts with the same label, 0 to 1."""
    split: str = "validation"
    """Split of the data to take texts from."""
    rows: int = Field(default=128, ge=1)
    """Texts to compare, drawn from the split with the seed."""
    batch_sizes: list[int] = Field(default=[1, 8], min_length=1)
    """Texts a call; every text is run once for each size."""
    runtime: str | None = None
    """Runtime that ships the export; by default the one that opens it."""


def check(inputs: StageInputs, config: CheckConfig, context: StageContext) -> Artifact:
    """Compares an export (`model`) with the torch model it came from (`reference`) and keeps the result.

    A failed check is a result too: pass it to `require_parity` to turn it into an error.

    Raises:
        DataError: no such split, or it is empty.
        ModelError: the runtime cannot open the export, or the model cannot be read.
        ArtifactError: edgekit did not write the export, so nothing tells what it should compute.
    """
    from edgekit.exporters.parity import PARITY_FILE, Differences, conclude, make_batches, run
    from edgekit.exporters.reference import load_reference
    from edgekit.models.tasks import read_task
    from edgekit.runtimes.protocol import SessionConfig, pad_token_id, runtime_for
    from edgekit.runtimes.torch_runtime import TorchSession

    model, reference = inputs.require("model", "check"), inputs.require("reference", "check")
    texts = _draw_texts(inputs, config, context.seed)
    max_length = read_task(model).max_length
    tokens = _compare_tokenizers(model, reference, texts, max_length)
    batches = make_batches(
        _encode(model, texts, max_length),
        config.batch_sizes,
        pad_id=pad_token_id(model),
        max_length=max_length,
        seed=context.seed,
    )
    runtime = runtime_for(model, config.runtime)
    exported = runtime.open(model, SessionConfig())
    original = TorchSession(load_reference(reference, model), exported.input_names, threads=1)
    differences = Differences()
    for batch in track(batches, context.events, stage="check", text="comparing", total=len(batches), unit="batches"):
        differences.add(run(original, batch), run(exported, batch))
    parity = conclude(
        differences,
        _thresholds(config, model, reference),
        tokens,
        runtime=f"{runtime.name} {runtime.version()}",
        texts=len(texts),
    )
    with publish(context.out, kind="parity", lineage=lineage_of("check", inputs, config, context)) as directory:
        (directory / PARITY_FILE).write_text(parity.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Artifact.open(context.out)


def _draw_texts(inputs: StageInputs, config: CheckConfig, seed: int) -> list[str]:
    import numpy as np

    from edgekit.data.prepared import PreparedData

    data = inputs.require("data", "check")
    texts = PreparedData.open(data).split(config.split).texts
    if not texts:
        raise DataError(f"{data.path}: the split '{config.split}' is empty, expected texts to compare on.")
    order = np.random.default_rng(seed).permutation(len(texts))[: config.rows]
    return [texts[row] for row in order.tolist()]


def _compare_tokenizers(model: Artifact, reference: Artifact, texts: list[str], max_length: int) -> TokenizerCheck:
    """Encodes hard texts and real ones with the export's own tokenizer file and with transformers."""
    from edgekit.exporters.parity import compare_vectors
    from edgekit.models.tokenizer import (
        NASTY_TEXTS,
        TOKENIZER_FILE,
        load_bare_tokenizer,
        load_tokenizer,
        tokenizer_vectors,
    )

    given = [*NASTY_TEXTS, *texts]
    expected = tokenizer_vectors(load_tokenizer(reference.path), given, max_length)
    found = tokenizer_vectors(load_bare_tokenizer(model.path / TOKENIZER_FILE), given, max_length)
    return compare_vectors(expected, found)


def _encode(model: Artifact, texts: list[str], max_length: int) -> list[list[int]]:
    from edgekit.data.preprocessing import encode
    from edgekit.models.tokenizer import TOKENIZER_FILE, load_bare_tokenizer

    return encode(texts, load_bare_tokenizer(model.path / TOKENIZER_FILE), max_length, allow_empty=True)


def _thresholds(config: CheckConfig, model: Artifact, reference: Artifact) -> Thresholds:
    from edgekit.exporters.parity import Thresholds

    largest, mean = _ROUNDED if _rounds_activations(model, reference) else _EXACT
    return Thresholds(
        max_abs_diff=largest if config.max_abs_diff is None else config.max_abs_diff,
        mean_abs_diff=mean if config.mean_abs_diff is None else config.mean_abs_diff,
        label_agreement=config.label_agreement,
    )


def _rounds_activations(model: Artifact, reference: Artifact) -> bool:
    """Returns True when the export rounds activations to 8 bits: a value on an edge may fall either way."""
    from edgekit.exporters.description import read_description

    file = reference.path / "quantization.json"
    if read_description(model.path).precision != "as-is" or not file.is_file():
        return False
    modules = json.loads(file.read_text(encoding="utf-8"))["modules"]
    return any(scheme["activations"] == "dynamic-int8" for scheme in modules.values())
