"""`edgekit bench`: latency and memory of one model, or of two in turn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from edgekit.cli.options import AsJson, Seed
from edgekit.cli.results import conclude
from edgekit.cli.terminal import listening


def bench(
    model: Path,
    out: Path | None = None,
    *,
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    length: int = 64,
    min_samples: int = 30,
    min_seconds: float = 3.0,
    compare: Annotated[Path | None, Parameter(name=["--compare", "--reference"])] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> int:
    """Measure latency and memory in a fresh process; with --compare, two models in turn in one run.

    Parameters
    ----------
    model
        A model or an export: an artifact directory, or a bundle.
    out
        Where to keep the measurement with its raw samples; without it, it is only shown.
    runtime
        Runtime that runs it; by default onnxruntime for exports and torch for models.
    threads
        Threads that one call may use.
    batch
        Rows a call.
    length
        Tokens a row.
    min_samples
        Samples at least.
    min_seconds
        Seconds of sampling at least.
    compare
        Another model of the same runtime: the two take turns, and the ratio of their p50 is given with its interval.
    """
    from edgekit.api import run
    from edgekit.artifact import Artifact
    from edgekit.benchmarking.stage import BenchConfig

    opened = Artifact.open(model)
    config = BenchConfig(
        runtime=runtime,
        threads=threads,
        batch=batch,
        length=length,
        min_samples=min_samples,
        min_seconds=min_seconds,
    )
    reference: dict[str, Any] = {} if compare is None else {"reference": compare}
    with tempfile.TemporaryDirectory() as scratch:
        place = out or Path(scratch) / "measurement"
        with listening(as_json=json) as events:
            artifact = run("bench", opened, config, out=place, seed=seed, events=events, **reference)
        return conclude(
            artifact, as_json=json, shown_path=out or Path("(not kept: name an output directory to keep it)")
        )
