"""Builds made by hand, with every kind of thing that a report must show."""

from __future__ import annotations

import random
import statistics

from edgekit.results import (
    BudgetCheck,
    BudgetResult,
    BuildResult,
    Comparison,
    Estimate,
    EstimateCheck,
    ExportResult,
    Interval,
    Machine,
    Measurement,
    Parity,
    PreparationResult,
    Quality,
    StageResult,
)

MIB = 2**20
LAPTOP = Machine(
    cpu="Intel(R) Xeon(R) Processor @ 2.70GHz",
    architecture="x86_64",
    cores=2,
    memory_bytes=24 * 2**30,
    cpu_features=["avx2", "avx512f", "avx512_vnni"],
    operating_system="Linux 6.1",
    python="3.11.2",
)
TEACHER_ACCURACY = 0.839


def quality(accuracy: float, *, teacher: bool = True) -> Quality:
    """Returns a quality on 962 rows; with `teacher`, compared with one of 83.9 %."""
    change = accuracy - TEACHER_ACCURACY
    return Quality(
        accuracy=accuracy,
        accuracy_interval=Interval(low=accuracy - 0.023, high=accuracy + 0.022),
        cross_entropy=0.39 + (0.85 - accuracy),
        rows=962,
        teacher_agreement=0.93 if teacher else None,
        accuracy_change=change if teacher else None,
        accuracy_change_interval=Interval(low=change - 0.011, high=change + 0.011) if teacher else None,
        per_label_recall={"negative": accuracy + 0.01, "positive": accuracy - 0.01},
        per_label_recall_intervals={
            "negative": Interval(low=accuracy - 0.02, high=accuracy + 0.04),
            "positive": Interval(low=accuracy - 0.04, high=accuracy + 0.02),
        },
    )


def measurement(p50_ms: float, model_bytes: int, *, seed: int = 0, count: int = 400) -> Measurement:
    """Returns a measurement whose samples scatter around `p50_ms` with a tail to the right."""
    generator = random.Random(seed)
    samples = [round(p50_ms * generator.lognormvariate(0, 0.03) + generator.expovariate(20), 4) for _ in range(count)]
    quantiles = statistics.quantiles(samples, n=100)

    def near(value: float) -> Interval:
        return Interval(low=value * 0.99, high=value * 1.015)

    anonymous = 12 * MIB + int(model_bytes * 1.4)
    return Measurement(
        runtime="onnxruntime",
        runtime_version="1.32.0",
        threads=1,
        batch=1,
        length=64,
        samples_ms=samples,
        warmup_runs=20,
        settled=True,
        p50_ms=quantiles[49],
        p50_interval_ms=near(quantiles[49]),
        p90_ms=quantiles[89],
        p90_interval_ms=near(quantiles[89]),
        p95_ms=quantiles[94],
        p95_interval_ms=near(quantiles[94]),
        p99_ms=quantiles[98],
        p99_interval_ms=near(quantiles[98]),
        rows_per_s=1000 / statistics.fmean(samples),
        load_ms=61.5,
        peak_rss_bytes=anonymous + 38 * MIB,
        rss_anonymous_bytes=anonymous,
        rss_file_bytes=31 * MIB,
        baseline_rss_bytes=11 * MIB,
        load_average=0.4,
        pinned_cores=[0],
        machine=LAPTOP,
        model_digest=f"{int(p50_ms * 1000):064x}",
        model_bytes=model_bytes,
    )


def comparison(first: Measurement, second: Measurement) -> Comparison:
    """Returns the two as if they had been interleaved."""
    ratio = second.p50_ms / first.p50_ms
    return Comparison(
        first=first,
        second=second,
        ratio_p50=ratio,
        ratio_interval=Interval(low=ratio * 0.97, high=ratio * 1.03),
        rounds=40,
    )


def parity(*failures: str) -> Parity:
    """Returns a parity check with these failures."""
    return Parity(
        runtime="onnxruntime 1.32.0",
        rows=256,
        max_abs_diff=2.4e-6 if not failures else 0.61,
        mean_abs_diff=4.1e-7 if not failures else 0.08,
        label_agreement=1.0 if not failures else 0.97,
        tokenizer_mismatches=0,
        tokenizer_texts=292,
        passed=not failures,
        failures=list(failures),
    )


def budget(measured: Measurement, drop: float, *, limit_ms: float, on_target: bool) -> BudgetResult:
    """Returns a budget of four checks; latency and memory are left open where the target was not measured."""
    memory = measured.peak_rss_bytes
    latency_status = "not-measured" if not on_target else "met" if measured.p95_ms < limit_ms else "missed"
    checks = [
        BudgetCheck(
            name="file_bytes",
            limit=9_000_000,
            value=measured.model_bytes,
            status="met" if measured.model_bytes <= 9_000_000 else "missed",
            explanation=f"{measured.model_bytes} bytes, at most 9000000 allowed.",
        ),
        BudgetCheck(
            name="peak_memory_bytes",
            limit=96 * MIB,
            value=memory if on_target else None,
            status="met" if on_target else "not-measured",
            explanation="Peak memory of the process that ran the model.",
        ),
        BudgetCheck(
            name="p95_ms",
            limit=limit_ms,
            value=measured.p95_ms if on_target else None,
            interval=measured.p95_interval_ms if on_target else None,
            status=latency_status,
            explanation="p95 was found on this machine." if on_target else "Nobody measured on such a device.",
        ),
        BudgetCheck(
            name="quality_drop",
            limit=0.02,
            value=drop,
            interval=Interval(low=drop - 0.011, high=drop + 0.011),
            status="met",
            explanation="The accuracy lost since the teacher.",
        ),
    ]
    return BudgetResult(met=all(check.status in ("met", "not-measured") for check in checks), checks=checks)


def estimate(low: float, high: float) -> Estimate:
    """Returns a latency that nobody measured."""
    return Estimate(
        quantity="latency",
        low=low,
        high=high,
        unit="ms",
        formula="max(8,640,000 B / 17.1e9 B/s, 0.62e9 operations / 180e9 operations/s) / efficiency 1 to 0.25",
        assumptions=["one core at its peak clock", "weights read once a call", "no other load, no throttling"],
    )


def estimate_check(estimated: Estimate, measured: float) -> EstimateCheck:
    """Returns an estimate beside a measurement."""
    middle = (estimated.low * estimated.high) ** 0.5
    within = estimated.low <= measured <= estimated.high
    return EstimateCheck(estimate=estimated, measured=measured, ratio=measured / middle, within=within)


def build(*, name: str = "review-sentiment") -> BuildResult:
    """Returns a build whose every gate passed: four stages, one file for three targets."""
    export_quality = quality(0.837)
    shipped = measurement(3.82, 8_640_000)
    float_export = measurement(11.9, 34_400_000, seed=1)
    teacher_export = measurement(21.4, 90_900_000, seed=2)
    targets = [
        ("laptop-x86", "A current x86-64 laptop", True),
        ("pixel-8", "Google Pixel 8 (Tensor G3)", False),
        ("raspberry-pi-5", "Raspberry Pi 5 (BCM2712)", False),
    ]
    exports = [
        ExportResult(
            format="onnx",
            target=target,
            target_description=description,
            measured_on_target=on_target,
            bytes=8_640_000,
            parity=parity(),
            quality=export_quality,
            measurement=shipped,
            float_comparison=comparison(shipped, float_export),
            teacher_comparison=comparison(shipped, teacher_export),
            estimates=[] if on_target else [estimate(2.1 + index, 8.4 + index)],
            estimate_checks=[estimate_check(estimate(1.0, 9.0), shipped.p50_ms)] if on_target else [],
            budget=budget(shipped, 0.002, limit_ms=12, on_target=on_target),
            bundle=f"bundles/{name}-{target}",
        )
        for index, (target, description, on_target) in enumerate(targets)
    ]
    return BuildResult(
        schema_version=1,
        name=name,
        seed=17,
        edgekit_version="0.1.0",
        machine=LAPTOP,
        teacher_quality=quality(TEACHER_ACCURACY, teacher=False),
        teacher_bytes=90_900_000,
        teacher_parameters=22_713_728,
        preparation=[
            PreparationResult(kind="prepare", seconds=4.2, cached=False, digest="a" * 64, path="stages/prepare-aaaa"),
            PreparationResult(kind="import", seconds=1.1, cached=True, digest="b" * 64, path="stages/import-bbbb"),
        ],
        stages=[
            stage("finetune", 361.0, quality(TEACHER_ACCURACY, teacher=False), 90_900_000, 22_713_728),
            stage("prune", 3.4, quality(0.702), 34_200_000, 8_540_000),
            stage("distill", 352.8, quality(0.841), 34_200_000, 8_540_000, cached=True),
            stage("quantize", 2.6, quality(0.837), 8_610_000, 8_540_000),
        ],
        exports=exports,
        recipe={"name": name, "seed": 17, "task": {"kind": "text-classification", "labels": ["negative", "positive"]}},
        exit_code=0,
    )


def stage(
    kind: str, seconds: float, found: Quality, model_bytes: int, parameters: int, *, cached: bool = False
) -> StageResult:
    """Returns one stage."""
    return StageResult(
        kind=kind,
        seconds=seconds,
        cached=cached,
        quality=found,
        digest="c" * 64,
        path=f"stages/{kind}-cccc",
        model_bytes=model_bytes,
        parameters=parameters,
    )


HOSTILE = "<script>alert('x')</script> | a|b & \"q\" \x07"


def failing_build() -> BuildResult:
    """Returns a build with a failed parity check, a missed and an inconclusive budget, and hostile text."""
    good = build(name=HOSTILE)
    slow = measurement(13.0, 9_640_000, seed=3)
    float_export = measurement(11.9, 34_400_000, seed=1)
    missed = budget(slow, 0.002, limit_ms=10, on_target=True)
    uncertain = missed.checks[2].model_copy(update={"status": "inconclusive", "limit": slow.p95_ms})
    broken = good.exports[1].model_copy(
        update={
            "parity": parity("max_abs_diff 0.61 is above 0.05."),
            "measurement": None,
            "float_comparison": None,
            "teacher_comparison": None,
            "quality": None,
            "bundle": None,
        }
    )
    late = good.exports[0].model_copy(
        update={
            "measurement": slow,
            "float_comparison": comparison(slow, float_export),
            "teacher_comparison": None,
            "bytes": slow.model_bytes,
            "budget": missed,
            "bundle": None,
            "notes": ["int8 is slower than float32: p50 13.0 ms against 11.9 ms"],
        }
    )
    open_one = late.model_copy(
        update={
            "target": "laptop-old",
            "budget": BudgetResult(met=False, checks=[*missed.checks[:2], uncertain, missed.checks[3]]),
        }
    )
    return good.model_copy(
        update={
            "exports": [late, open_one, broken],
            "failures": [
                "onnx for laptop-x86: p95_ms: 13.9 ms is above 10 ms.",
                f"onnx for pixel-8: parity: max_abs_diff 0.61 is above 0.05. {HOSTILE}",
            ],
            "exit_code": 3,
        }
    )


def minimal_build() -> BuildResult:
    """Returns a build with no teacher, no measurement and no export."""
    return BuildResult(schema_version=1, name="tiny", seed=0, stages=[], exports=[], exit_code=0)
