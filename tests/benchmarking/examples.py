"""Results to judge, built from samples by the harness's own functions."""

from __future__ import annotations

import numpy as np

from edgekit.benchmarking.statistics import quantile_interval
from edgekit.results import Interval, Machine, Measurement, Quality

LAPTOP = Machine(
    cpu="Some Laptop CPU",
    architecture="x86_64",
    cores=8,
    memory_bytes=2**34,
    cpu_features=["avx2", "f16c", "fma"],
    operating_system="Linux 6",
    python="3.11",
)


def measurement(samples_ms: list[float], **changes: object) -> Measurement:
    """Returns a measurement with these samples."""
    values: dict[str, object] = {
        "runtime": "onnxruntime",
        "runtime_version": "1.32.0",
        "threads": 1,
        "batch": 1,
        "length": 64,
        "samples_ms": samples_ms,
        "warmup_runs": 20,
        "settled": True,
        "rows_per_s": 1e3 / float(np.mean(samples_ms)),
        "load_ms": 10.0,
        "peak_rss_bytes": 100_000_000,
        "rss_anonymous_bytes": 60_000_000,
        "rss_file_bytes": 30_000_000,
        "load_average": 0.1,
        "pinned_cores": [1],
        "machine": LAPTOP,
        "model_digest": "0" * 64,
        "model_bytes": 8_000_000,
    }
    for percent in (50, 90, 95, 99):
        values[f"p{percent}_ms"] = float(np.quantile(samples_ms, percent / 100))
        values[f"p{percent}_interval_ms"] = quantile_interval(samples_ms, percent / 100)
    return Measurement.model_validate({**values, **changes})


def steady(p50_ms: float, count: int = 400) -> list[float]:
    """Returns independent samples that scatter by 2 % around `p50_ms`."""
    return (p50_ms * np.exp(0.02 * np.random.default_rng(0).standard_normal(count))).tolist()


def quality(change: float | None, low: float = 0.0, high: float = 0.0) -> Quality:
    """Returns a quality whose accuracy changed by `change` (`low` to `high`) since the teacher."""
    compared = (
        {} if change is None else {"accuracy_change": change, "accuracy_change_interval": Interval(low=low, high=high)}
    )
    return Quality(
        accuracy=0.9, accuracy_interval=Interval(low=0.88, high=0.92), cross_entropy=0.3, rows=1000, **compared
    )
