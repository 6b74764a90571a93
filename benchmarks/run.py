"""Runs every benchmark in order and writes the results into benchmarks/results/ and README.md: `make bench`.

    python benchmarks/run.py [--quick]

`--quick` shows in minutes that everything runs: one seed, little training, few rounds. Its figures are no results:
they stay in the work directory, and README.md stays as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from measuring import COMMITTED, ROOT, say
from tables import rewrite_readme

HERE = Path(__file__).resolve().parent
SCRIPTS = ("startup", "latency_against_peers", "accuracy")
QUICK_OPTIONS = {
    "startup": ["--runs", "5", "--rebuilds", "1"],
    "latency_against_peers": ["--rounds", "6"],
    "accuracy": ["--seeds", "1"],
}
QUICK_RECIPE = ("stage.0.epochs=0.2", "stage.2.epochs=0.1", "data.unlabelled.max_rows=500", "bench.min_seconds=0.5")


def options(script: str, build: Path, litert_python: Path | None, quick: bool) -> list[str]:
    """Returns the command line of one script."""
    work = build / "benchmarks"
    chosen = ["--build", str(build), "--work", str(work)]
    if litert_python is not None and script == "latency_against_peers":
        chosen += ["--litert-python", str(litert_python)]
    if not quick:
        return chosen
    settings = [word for assignment in QUICK_RECIPE for word in ("--set", assignment)]
    return [*chosen, "--results", str(work / "results"), *settings, *QUICK_OPTIONS[script]]


def main() -> None:
    """Runs the scripts one after another; the first that fails ends it."""
    parser = argparse.ArgumentParser(description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="little training and few rounds: does everything run?")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="what `make demo` made, or will")
    parser.add_argument("--litert-python", type=Path, help="Python of an environment with LiteRT; made when not given")
    arguments = parser.parse_args()
    build = arguments.build / "quick" if arguments.quick else arguments.build
    for script in SCRIPTS:
        say(f"== {script}")
        command = [sys.executable, str(HERE / f"{script}.py")]
        command += options(script, build, arguments.litert_python, arguments.quick)
        finished = subprocess.run(command, check=False)
        if finished.returncode != 0:
            raise SystemExit(finished.returncode)
    if arguments.quick:
        say("These figures show that everything runs; they are no results.")
        return
    rewrite_readme(COMMITTED)


if __name__ == "__main__":
    main()
