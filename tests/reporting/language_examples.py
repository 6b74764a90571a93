"""Builds of a language model made by hand, with every kind of thing that a report of one must show."""

from __future__ import annotations

import math
import random
import statistics

from edgekit.results import (
    BudgetCheck,
    BudgetResult,
    BuildResult,
    DecodeFit,
    Estimate,
    ExportResult,
    GenerationDepth,
    GenerationMeasurement,
    Interval,
    LanguageParity,
    LanguageQuality,
    PreparationResult,
)
from tests.reporting.examples import LAPTOP, MIB, stage

TEACHER_PERPLEXITY = 26.8
BANDWIDTH = 31e9
WEIGHTS = 86_000_000
CACHE_BYTES_A_TOKEN = 30 * 2 * 3 * 64 * 4
"""SmolLM2-135M's keys and values in float32."""


def near(value: float, share: float = 0.015) -> Interval:
    """Returns an interval around `value`."""
    return Interval(low=value * (1 - share), high=value * (1 + share))


def language_quality(perplexity: float, *, ratio: float | None = None, split: str = "test") -> LanguageQuality:
    """Returns a quality on 41,200 tokens; with `ratio`, compared with a teacher."""
    interval = Interval(low=perplexity - 1.5, high=perplexity + 1.5)
    return LanguageQuality(
        perplexity=perplexity,
        perplexity_interval=interval,
        cross_entropy=math.log(perplexity),
        accuracy=0.38,
        tokens=41_200,
        documents=120,
        split=split,
        perplexity_ratio=ratio,
        perplexity_ratio_interval=None if ratio is None else Interval(low=ratio - 0.04, high=ratio + 0.04),
        divergence=None if ratio is None else 0.31,
        divergence_p99=None if ratio is None else 2.8,
        teacher_agreement=None if ratio is None else 0.71,
    )


def with_parts(perplexity: float, *, teacher: bool = True) -> LanguageQuality:
    """Returns a quality over two splits."""
    ratio = perplexity / TEACHER_PERPLEXITY if teacher else None
    whole = language_quality(perplexity, ratio=ratio, split="test + news")
    parts = {
        name: language_quality(perplexity * factor, ratio=ratio, split=name)
        for name, factor in (("test", 0.93), ("news", 1.12))
    }
    return whole.model_copy(update={"parts": parts})


def generation_depth(context: int, *, count: int = 10, seed: int = 0) -> GenerationDepth:
    """Returns writing after `context` tokens, decoding at about a third of the roofline."""
    generator = random.Random(seed + context)
    step_bytes = WEIGHTS + CACHE_BYTES_A_TOKEN * context
    token_ms = 1e3 * step_bytes / 15e9 + 3.4
    first_ms = context / 0.31 + 4
    tokens = [round(token_ms * generator.lognormvariate(0, 0.04), 4) for _ in range(64 * count)]
    quantiles = statistics.quantiles(tokens, n=100)
    decode = 1e3 / statistics.fmean(tokens)
    firsts = [round(first_ms * generator.lognormvariate(0, 0.02), 3) for _ in range(count)]
    return GenerationDepth(
        context_tokens=context,
        new_tokens=64,
        first_token_ms=statistics.median(firsts),
        first_token_interval_ms=near(statistics.median(firsts), 0.02),
        prefill_tokens_per_s=1e3 * context / first_ms,
        prefill_tokens_per_s_interval=near(1e3 * context / first_ms, 0.02),
        decode_tokens_per_s=decode,
        decode_tokens_per_s_interval=near(decode, 0.01),
        inter_token_p50_ms=quantiles[49],
        inter_token_p50_interval_ms=near(quantiles[49], 0.004),
        inter_token_p95_ms=quantiles[94],
        inter_token_p95_interval_ms=near(quantiles[94]),
        inter_token_p99_ms=quantiles[98],
        inter_token_p99_interval_ms=near(quantiles[98], 0.03),
        first_token_samples_ms=firsts,
        inter_token_samples_ms=tokens,
        bytes_per_token=step_bytes,
        roofline_share=decode * step_bytes / BANDWIDTH,
    )


def generation(*, contexts: tuple[int, ...] = (64, 512, 2048), **changes: object) -> GenerationMeasurement:
    """Returns a measurement of writing at these depths."""
    anonymous = 24 * MIB + WEIGHTS
    measured = GenerationMeasurement(
        runtime="onnxruntime-genai",
        runtime_version="0.18.0",
        threads=2,
        depths=[generation_depth(context) for context in contexts],
        warmup_runs=2,
        load_cold_ms=412.0,
        load_warm_ms=188.0,
        memory_bandwidth_bytes_per_s=BANDWIDTH,
        fit=DecodeFit(bytes_per_s=15e9, overhead_ms=3.4),
        peak_rss_bytes=anonymous + 96 * MIB,
        rss_anonymous_bytes=anonymous,
        rss_file_bytes=90 * MIB,
        baseline_rss_bytes=11 * MIB,
        library_rss_bytes=52 * MIB,
        load_average=0.4,
        pinned_cores=[0, 1],
        machine=LAPTOP,
        model_digest="e" * 64,
        model_bytes=WEIGHTS,
    )
    return measured.model_copy(update=changes)


def language_parity(*failures: str) -> LanguageParity:
    """Returns a parity check with these failures."""
    return LanguageParity(
        runtime="onnxruntime-genai 0.18.0",
        driving="shared-buffer",
        documents=16,
        tokens=8_192,
        max_abs_diff=2.1e-2 if not failures else 7.4,
        mean_abs_diff=1.1e-3 if not failures else 0.9,
        divergence=4.2e-6 if not failures else 0.31,
        divergence_p99=5.1e-5 if not failures else 2.2,
        top1_agreement=0.9991 if not failures else 0.74,
        greedy_prompts=8,
        greedy_tokens=64,
        greedy_equal_tokens=61.5 if not failures else 2.4,
        greedy_equal_share=0.875 if not failures else 0.0,
        tokenizer_mismatches=0,
        tokenizer_texts=292,
        template_mismatches=0,
        template_texts=24,
        passed=not failures,
        failures=list(failures),
    )


def language_budget(
    measured: GenerationMeasurement, ratio: float, *, least_tokens_per_s: float, on_target: bool
) -> BudgetResult:
    """Returns a budget of five checks; speed and memory are left open where the target was not measured."""
    deepest = measured.deepest
    decode = deepest.decode_tokens_per_s
    elsewhere = {"value": None, "interval": None, "status": "not-measured"}
    checks = [
        BudgetCheck(
            name="file_bytes", limit=100_000_000, value=measured.model_bytes, status="met", explanation="It fits."
        ),
        BudgetCheck(
            name="peak_memory_bytes",
            limit=300 * MIB,
            value=measured.peak_rss_bytes,
            status="met",
            explanation="Peak memory of the process that ran the model.",
        ),
        BudgetCheck(
            name="first_token_ms",
            limit=8_000,
            value=deepest.first_token_ms,
            interval=deepest.first_token_interval_ms,
            status="met",
            explanation="The first token after 2,048 came in time.",
        ),
        BudgetCheck(
            name="decode_tokens_per_s",
            limit=least_tokens_per_s,
            value=decode,
            interval=deepest.decode_tokens_per_s_interval,
            status="met" if decode >= least_tokens_per_s else "missed",
            explanation="After 2,048 tokens of context.",
        ),
        BudgetCheck(
            name="perplexity_ratio",
            limit=1.6,
            value=ratio,
            interval=Interval(low=ratio - 0.04, high=ratio + 0.04),
            status="met",
            explanation="The perplexity over the teacher's.",
        ),
    ]
    if not on_target:
        checks[1:4] = [check.model_copy(update=elsewhere) for check in checks[1:4]]
    return BudgetResult(met=all(check.status in ("met", "not-measured") for check in checks), checks=checks)


def language_build(*, least_tokens_per_s: float = 50.0) -> BuildResult:
    """Returns a build of a pocket assistant: cut, healed, quantized, exported for two targets."""
    measured, final = generation(), with_parts(38.9)
    assert final.perplexity_ratio is not None
    exports = [
        ExportResult(
            format="onnx",
            target=target,
            target_description=description,
            measured_on_target=on_target,
            bytes=WEIGHTS,
            parity=language_parity(),
            quality=final,
            measurement=measured,
            estimates=[] if on_target else [token_estimate()],
            budget=language_budget(
                measured, final.perplexity_ratio, least_tokens_per_s=least_tokens_per_s, on_target=on_target
            ),
            bundle=f"bundles/pocket-assistant-{target}",
        )
        for target, description, on_target in (
            ("laptop-x86", "A current x86-64 laptop", True),
            ("pixel-8", "Google Pixel 8 (Tensor G3)", False),
        )
    ]
    return BuildResult(
        schema_version=1,
        name="pocket-assistant",
        seed=11,
        edgekit_version="0.1.0",
        machine=LAPTOP,
        teacher_quality=with_parts(TEACHER_PERPLEXITY, teacher=False),
        teacher_bytes=538_000_000,
        teacher_parameters=134_515_008,
        preparation=[
            PreparationResult(kind="prepare", seconds=14.2, cached=False, digest="a" * 64, path="stages/prepare-aaaa"),
            PreparationResult(kind="import", seconds=3.1, cached=True, digest="b" * 64, path="stages/import-bbbb"),
            PreparationResult(kind="capture", seconds=212.0, cached=False, digest="d" * 64, path="stages/capture-dddd"),
        ],
        stages=[
            stage("prune", 31.0, with_parts(186.4), 394_000_000, 98_500_000),
            stage("distill", 903.8, with_parts(37.6), 394_000_000, 98_500_000),
            stage("quantize", 44.6, with_parts(38.8), 85_400_000, 98_500_000),
        ],
        exports=exports,
        recipe={"name": "pocket-assistant", "seed": 11, "task": {"kind": "causal-lm", "max_length": 4096}},
        exit_code=0,
    )


def token_estimate() -> Estimate:
    """Returns a time of a token that nobody measured."""
    return Estimate(
        quantity="time of a token",
        low=5.4,
        high=21.6,
        unit="ms",
        formula="(86.0 MB + 94.4 MB of keys and values) / 33.4 GB/s / efficiency 1 to 0.25",
        assumptions=["weights, keys and values are read once a token", "no other load, no throttling"],
    )


def failing_language_build() -> BuildResult:
    """Returns a build that is too slow on one target and whose export is another model for the other."""
    good = language_build(least_tokens_per_s=90.0)
    broken = good.exports[1].model_copy(
        update={
            "parity": language_parity("top1_agreement 0.74 is below 0.99."),
            "measurement": None,
            "quality": None,
            "bundle": None,
        }
    )
    late = good.exports[0].model_copy(update={"bundle": None})
    return good.model_copy(
        update={
            "exports": [late, broken],
            "failures": ["onnx for pixel-8: parity: top1_agreement 0.74 is below 0.99."],
            "exit_code": 3,
        }
    )
