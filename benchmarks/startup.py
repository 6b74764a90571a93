"""How long `edgekit --help` takes, and a rebuild in which nothing changed.

    python benchmarks/startup.py [--runs 20] [--rebuilds 3]

The build is made first when it is not there yet; that takes minutes and is not counted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from measuring import make_parser, say, write_result

from edgekit.benchmarking.statistics import quantile_interval

LIMITS_MS = {"help": 300.0, "rebuild": 5000.0}
BUDGET_MISSED = 1


def command() -> list[str]:
    """Returns the installed console script beside this Python, which is what a user runs."""
    script = Path(sys.executable).with_name("edgekit")
    if not script.is_file():
        raise SystemExit(f"{script}: not found. Install edgekit into this environment: pip install -e '.[demo]'")
    return [str(script)]


def time_runs(arguments: list[str], runs: int) -> list[float]:
    """Returns the wall time of `runs` fresh processes, milliseconds, after one that fills the file cache."""
    samples = []
    for run in range(runs + 1):
        started = time.perf_counter()
        finished = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        elapsed = (time.perf_counter() - started) * 1e3
        # A missed budget is a whole build all the same; anything else is not.
        if finished.returncode not in (0, BUDGET_MISSED):
            raise SystemExit(f"{' '.join(arguments)}: exit code {finished.returncode}.\n{finished.stderr}")
        if run > 0:
            samples.append(elapsed)
    return samples


def describe(samples: list[float], limit_ms: float) -> dict[str, Any]:
    """Returns the median of `samples` with its interval, and the limit that it is to stay under."""
    interval = quantile_interval(samples, 0.5)
    return {
        "p50_ms": median(samples),
        "p50_interval_ms": [interval.low, interval.high],
        "limit_ms": limit_ms,
        "samples_ms": [round(sample, 2) for sample in samples],
    }


def main() -> None:
    """Measures both and writes `startup.json`."""
    parser = make_parser("Time of `edgekit --help` and of an unchanged rebuild.")
    parser.add_argument("--runs", type=int, default=20, help="fresh runs of `edgekit --help`")
    parser.add_argument("--rebuilds", type=int, default=3, help="unchanged rebuilds")
    arguments = parser.parse_args()
    build = [*command(), "build", arguments.recipe, "--out", str(arguments.build)]
    build += [word for setting in arguments.settings for word in ("--set", setting)]
    say("building once (minutes, unless it is there already)")
    measured = {
        "help": describe(time_runs([*command(), "--help"], arguments.runs), LIMITS_MS["help"]),
        "rebuild": describe(time_runs(build, arguments.rebuilds), LIMITS_MS["rebuild"]),
    }
    path = write_result(arguments.results, "startup", measured, ("cyclopts", "pydantic", "rich", "torch"))
    for name, found in measured.items():
        print(f"{name}: {found['p50_ms']:.0f} ms (limit {found['limit_ms']:.0f} ms)")
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
