"""The stage `check`: an export against the model it came from, on real text, before anything ships."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of
from edgekit.errors import DataError, UsageError
from edgekit.events import track

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from edgekit.exporters.parity import Differences, Thresholds, TokenizerCheck
    from edgekit.results import AnyParity, Emulation
    from edgekit.runtimes.protocol import Runtime

_HERE = "local"
_OWN_FACTOR = 3.0
_EXACT = {"max_abs_diff": 1e-3, "mean_abs_diff": 1e-4}
_ROUNDED = {"max_abs_diff": 0.05, "mean_abs_diff": 5e-3}
_OWN_ROUNDING = ("openvino", "litert", "executorch")
"""Formats whose runtime rounds activations in a way of its own."""
_FLOAT_ACTIVATIONS = ("coreml",)
"""Formats whose runtime multiplies floats with what codes stand for, whatever the scheme says."""


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
    device: str = _HERE
    """Where the export runs: `local`, or for a classifier `qemu:cortex-a76`, an emulated ARM64 processor with its own
    kernels; prepare that once with `edgekit prepare-device`."""


def check(inputs: StageInputs, config: CheckConfig, context: StageContext) -> Artifact:
    """Compares an export (`model`) with the torch model it came from (`reference`) and keeps the result.

    A failed check is a result too: pass it to `require_parity` to turn it into an error. So is that of a language
    model, or of a Core ML package, that was not compared because the runtime is not here: it has not passed, and says
    what to do.

    Raises:
        DataError: no such split, or it is empty.
        ModelError: the runtime cannot open the export, or the model cannot be read.
        ArtifactError: edgekit did not write the export, so nothing tells what it should compute.
        UsageError: no such device, or it runs no such model or runtime.
        EnvironmentLacksError: the runtime or the emulator is not installed, or the device is not prepared.
    """
    from edgekit.exporters.parity import PARITY_FILE, Evidence, conclude, unverified
    from edgekit.models.tasks import read_task
    from edgekit.runtimes.protocol import runtime_elsewhere

    model, reference = inputs.require("model", "check"), inputs.require("reference", "check")
    texts = _draw_texts(inputs, config, context.seed)
    tokens = _compare_tokenizers(model, reference, texts, read_task(model).max_length)
    parity: AnyParity
    if read_task(model).kind == "causal-lm":
        parity = _check_language(inputs, config, context, (texts, tokens))
    elif (missing := runtime_elsewhere(model.kind, config.runtime)) is not None:
        parity = unverified(missing, model.digest)
    else:
        run_by = _run_by(model, config, texts)
        differences, own = _compare_logits(inputs, config, context, run_by)
        name = f"{run_by.runtime.name} {run_by.runtime.version()}"
        evidence = Evidence(differences, own, tokens, len(texts), name, model.digest, run_by.emulation)
        parity = conclude(evidence, _thresholds(config, own))
    with publish(context.out, kind="parity", lineage=lineage_of("check", inputs, config, context)) as directory:
        (directory / PARITY_FILE).write_text(parity.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Artifact.open(context.out)


def _check_language(
    inputs: StageInputs, config: CheckConfig, context: StageContext, material: tuple[list[str], TokenizerCheck]
) -> AnyParity:
    """Returns the result, or why nothing was compared."""
    from edgekit.exporters.language_check import check_language_model
    from edgekit.exporters.parity import unverified
    from edgekit.runtimes.generation import missing_runtime

    model = inputs.require("model", "check")
    if config.device != _HERE:
        raise UsageError(
            f"check: device {config.device} is for classifiers so far; found a language model. Leave it out."
        )
    missing = missing_runtime(model.kind, config.runtime)
    if missing is None:
        return check_language_model(inputs, config, context, *material)
    return unverified(missing, model.digest)


@dataclass(frozen=True)
class _RunBy:
    """What runs a classifier's export, and on what."""

    texts: list[str]
    runtime: Runtime
    emulation: Emulation | None
    """The processor, where it is an emulated one."""


def _run_by(model: Artifact, config: CheckConfig, texts: list[str]) -> _RunBy:
    """Returns the runtime here or on the device that is asked for."""
    from edgekit.runtimes.protocol import runtime_for

    is_here = config.device == _HERE
    runtime = runtime_for(model, config.runtime, must_be_here=is_here)
    if is_here:
        return _RunBy(texts, runtime, None)
    from edgekit.emulation.device import open_emulated

    device = open_emulated(config.device)
    return _RunBy(texts, device.runtime(runtime), device.describe())


def _compare_logits(
    inputs: StageInputs, config: CheckConfig, context: StageContext, run_by: _RunBy
) -> tuple[Differences, Differences | None]:
    """Returns how far the export's logits are from torch's, and torch's from its own where it rounds."""
    from edgekit.exporters.parity import Differences, make_batches, run
    from edgekit.exporters.reference import load_reference, rounds_activations
    from edgekit.models.tasks import read_task
    from edgekit.runtimes.protocol import SessionConfig, pad_token_id
    from edgekit.runtimes.torch_runtime import TorchSession

    model, reference = inputs.require("model", "check"), inputs.require("reference", "check")
    max_length, pad_id = read_task(model).max_length, pad_token_id(model)
    ids = _encode(model, run_by.texts, max_length)
    batches = make_batches(ids, config.batch_sizes, pad_id=pad_id, max_length=max_length, seed=context.seed)
    exported = run_by.runtime.open(model, SessionConfig())
    network = load_reference(reference, model)
    original = TorchSession(network, exported.input_names, threads=1)
    differences, own = Differences(), Differences()
    rounds = rounds_activations(reference, model) and model.kind not in _FLOAT_ACTIVATIONS
    roughened = _roughened(network, model.kind, run_by.emulation, context.seed)
    for batch in track(batches, context.events, stage="check", text="comparing", total=len(batches), unit="batches"):
        expected = run(original, batch)
        differences.add(expected, run(exported, batch))
        if rounds:
            with roughened():
                own.add(expected, run(original, batch))
    return differences, own if rounds else None


def _roughened(
    network: PreTrainedModel, kind: str, emulation: Emulation | None, seed: int
) -> Callable[[], AbstractContextManager[None]]:
    """Returns what moves torch's logits as far as an export's may move inside a `with` block.

    Where the runtime rounds activations as torch does: noise. Others round in a way of their own: what that does, to
    torch that multiplies floats from now on.
    """
    from edgekit.exporters.arm_rounding import FEATURE, multiply_floats_on_arm, rounding_on_arm
    from edgekit.exporters.block_rounding import multiply_floats, rounding_in_blocks, rounding_in_rows
    from edgekit.exporters.sensitivity import disturbed

    if kind in _OWN_ROUNDING:
        rounded = multiply_floats(network)
        return partial(rounding_in_blocks, network) if kind == "openvino" else partial(rounding_in_rows, rounded)
    if kind in _FLOAT_ACTIVATIONS:
        multiply_floats(network)
    if emulation is not None and FEATURE in emulation.cpu_features:
        rounded = multiply_floats_on_arm(network)
        if rounded:
            return partial(rounding_on_arm, rounded)
    return partial(disturbed, network, seed=seed)


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
