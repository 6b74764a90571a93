"""The stage `check`: an export against the model it came from, on real text, before anything ships."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import DataError
from edgekit.events import track

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from edgekit.exporters.parity import Differences, Thresholds, TokenizerCheck
    from edgekit.models.quantized import QuantizedLinear
    from edgekit.results import AnyParity

_OWN_FACTOR = 3.0
_EXACT = {"max_abs_diff": 1e-3, "mean_abs_diff": 1e-4}
_ROUNDED = {"max_abs_diff": 0.05, "mean_abs_diff": 5e-3}
_OWN_ROUNDING = ("openvino", "litert")
"""Formats whose runtime rounds activations in a way of its own."""


class CheckConfig(StageConfig):
    """What must hold between an export and its model, and on how much text."""

    max_abs_diff: float | None = Field(default=None, ge=0)
    """Largest difference of any logit. By default 0.001; where activations are rounded to 8 bits 0.05, or three times
    what one part in a million of noise does to the torch model on the same texts, whichever is more."""
    mean_abs_diff: float | None = Field(default=None, ge=0)
    """Largest mean difference. By default 0.0001; where activations are rounded to 8 bits 0.005, or three times the
    torch model's own as above."""
    share_above_own: float = Field(default=0.4, ge=0, le=1)
    """Where activations are rounded to 8 bits: largest share of texts that differ by more than twice what the noise
    does on them, and by more than 0.001."""
    label_agreement: float = Field(default=0.98, ge=0, le=1)
    """Smallest share of texts with the same label, 0 to 1."""
    split: str = "validation"
    """Split of the data to take texts from."""
    rows: int = Field(default=128, ge=1)
    """Texts to compare, drawn from the split with the seed."""
    batch_sizes: list[int] = Field(default=[1, 8], min_length=1)
    """Texts a call; every text is run once for each size."""
    divergence: float | None = Field(default=None, ge=0)
    """Language models: largest mean KL(torch || export), nats a token. By default 0.00001; where activations are
    rounded 0.02, and the two limits on logits do not hold. Under llama.cpp 0.001, or twice what rounding activations in
    its blocks does to the torch model on the same texts, whichever is more."""
    divergence_p99: float | None = Field(default=None, ge=0)
    """Language models: largest 99th percentile of the same. By default 0.0001, where rounded 0.2; under llama.cpp 0.01,
    or twice torch's own."""
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    """Language models: smallest share of tokens with the same likeliest token. By default 0.995, where rounded 0.93;
    under llama.cpp at most 3 % of tokens may differ, or twice torch's own."""
    greedy_equal_share: float | None = Field(default=None, ge=0, le=1)
    """Language models: smallest share of prompts that both continue alike. By default 0.75, where rounded 0."""
    documents: int = Field(default=16, ge=1)
    """Language models: texts to compare."""
    max_tokens: int = Field(default=192, ge=2)
    """Language models: tokens of each text, from its start."""
    greedy_prompts: int = Field(default=8, ge=0)
    """Language models: beginnings of texts to write on from."""
    greedy_tokens: int = Field(default=48, ge=1)
    """Language models: tokens to write after each."""
    runtime: str | None = None
    """Runtime that ships the export; by default the one that opens it."""


def check(inputs: StageInputs, config: CheckConfig, context: StageContext) -> Artifact:
    """Compares an export (`model`) with the torch model it came from (`reference`) and keeps the result.

    A failed check is a result too: pass it to `require_parity` to turn it into an error. So is a language model's that
    was not compared, because the runtime is not here: it has not passed, and says what to install.

    Raises:
        DataError: no such split, or it is empty.
        ModelError: the runtime cannot open the export, or the model cannot be read.
        ArtifactError: edgekit did not write the export, so nothing tells what it should compute.
    """
    from edgekit.exporters.parity import PARITY_FILE, Evidence, conclude
    from edgekit.models.tasks import read_task

    model, reference = inputs.require("model", "check"), inputs.require("reference", "check")
    texts = _draw_texts(inputs, config, context.seed)
    tokens = _compare_tokenizers(model, reference, texts, read_task(model).max_length)
    if read_task(model).kind == "causal-lm":
        parity = _check_language(inputs, config, context, (texts, tokens))
    else:
        runtime, differences, own = _compare_logits(inputs, config, context, texts)
        evidence = Evidence(differences, own, tokens, len(texts), runtime, model.digest)
        parity = conclude(evidence, _thresholds(config, own))
    with publish(context.out, kind="parity", lineage=lineage_of("check", inputs, config, context)) as directory:
        (directory / PARITY_FILE).write_text(parity.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Artifact.open(context.out)


def _check_language(
    inputs: StageInputs, config: CheckConfig, context: StageContext, material: tuple[list[str], TokenizerCheck]
) -> AnyParity:
    """Returns the result, or why nothing was compared."""
    from edgekit.exporters.language_check import check_language_model
    from edgekit.results import Unverified
    from edgekit.runtimes.generation import missing_runtime

    model = inputs.require("model", "check")
    missing = missing_runtime(model.kind, config.runtime)
    if missing is None:
        return check_language_model(inputs, config, context, *material)
    return Unverified(
        runtime=missing.name,
        reason=missing.reason,
        failures=[f"Unverified under {missing.name}: {missing.reason}"],
        model_digest=model.digest,
    )


def _compare_logits(
    inputs: StageInputs, config: CheckConfig, context: StageContext, texts: list[str]
) -> tuple[str, Differences, Differences | None]:
    """Returns the runtime with its version, the export's differences from torch, and torch's own where it rounds."""
    from edgekit.exporters.block_rounding import multiply_floats
    from edgekit.exporters.parity import Differences, make_batches, run
    from edgekit.exporters.reference import load_reference, rounds_activations
    from edgekit.models.tasks import read_task
    from edgekit.runtimes.protocol import SessionConfig, pad_token_id, runtime_for
    from edgekit.runtimes.torch_runtime import TorchSession

    model, reference = inputs.require("model", "check"), inputs.require("reference", "check")
    max_length, pad_id = read_task(model).max_length, pad_token_id(model)
    ids = _encode(model, texts, max_length)
    batches = make_batches(ids, config.batch_sizes, pad_id=pad_id, max_length=max_length, seed=context.seed)
    runtime = runtime_for(model, config.runtime)
    exported = runtime.open(model, SessionConfig())
    network = load_reference(reference, model)
    original = TorchSession(network, exported.input_names, threads=1)
    differences, own = Differences(), Differences()
    rounds = rounds_activations(reference, model)
    rounded = multiply_floats(network) if model.kind in _OWN_ROUNDING else []
    for batch in track(batches, context.events, stage="check", text="comparing", total=len(batches), unit="batches"):
        expected = run(original, batch)
        differences.add(expected, run(exported, batch))
        if rounds:
            with _roughened(network, model.kind, rounded, context.seed):
                own.add(expected, run(original, batch))
    return f"{runtime.name} {runtime.version()}", differences, own if rounds else None


def _roughened(
    network: PreTrainedModel, kind: str, rounded: list[QuantizedLinear], seed: int
) -> AbstractContextManager[None]:
    """Returns what moves torch's logits as far as an export's may move inside the `with` block.

    Where the runtime rounds activations as torch does: noise. Others round in a way of their own: what that does.
    """
    from edgekit.exporters.block_rounding import rounding_in_blocks, rounding_in_rows
    from edgekit.exporters.sensitivity import disturbed

    if kind == "openvino":
        return rounding_in_blocks(network)
    return rounding_in_rows(rounded) if kind == "litert" else disturbed(network, seed=seed)


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


def _thresholds(config: CheckConfig, own: Differences | None) -> Thresholds:
    """Returns the configured limits; where one is not configured, the default, relaxed for a model that rounds."""
    from edgekit.exporters.parity import Thresholds

    fixed = {"label_agreement": config.label_agreement, "share_above_own": config.share_above_own}
    default = Thresholds(**(_EXACT if own is None else _ROUNDED), **fixed)
    if own is not None:
        default = default.relaxed(own, _OWN_FACTOR)
    given = config.model_dump(include={"max_abs_diff", "mean_abs_diff"}, exclude_none=True)
    return replace(default, **given)
