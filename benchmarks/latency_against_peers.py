"""Latency of edgekit's int8 export against the teacher, LiteRT, float32 and torch, taking turns in one run.

    python benchmarks/latency_against_peers.py [--rounds 40] [--litert-python VENV/bin/python]

Every contender runs in a fresh process of its own, all pinned to the same core, one thread, 1 x 64 tokens. In each
round each takes one turn, in an order drawn anew, so that a drift of the machine meets all alike. A ratio is the median
over rounds of the ratio of the turns' medians, with a bootstrap interval over rounds.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Contender, Models, litert_environment, litert_report, models_of, prepare
from measuring import chosen_recipe, make_parser, say, write_result
from operators import profile_operators
from tables import latency_table

from edgekit.benchmarking.machine import load_average
from edgekit.benchmarking.process import MeasuringProcess, Subject
from edgekit.benchmarking.scenario import Scenario, random_scenario
from edgekit.benchmarking.statistics import has_settled, median_ratio, quantile_interval

LENGTH = 64
TIMEOUT_S = 120.0
WARMUP_WINDOW = 20
MAX_WARMUP_RUNS = 600
TURN_S = 0.15
MIN_TURN_RUNS = 5
PACKAGES = ("onnxruntime", "torch", "transformers", "numpy")


@dataclass
class Series:
    """What one contender's process gave."""

    contender: Contender
    process: MeasuringProcess
    samples_ns: list[int] = field(default_factory=list)
    turn_medians_ns: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Runs until the spread settles, or the limit is reached."""
        samples: list[int] = []
        while len(samples) < MAX_WARMUP_RUNS and not has_settled(
            samples, window=WARMUP_WINDOW, spread=0.05, drift=0.03
        ):
            samples += self.process.sample(WARMUP_WINDOW, TIMEOUT_S)

    def take_turn(self) -> None:
        """Samples for one turn; its first call runs on another contender's caches and is dropped."""
        turn = self.process.sample(1, TIMEOUT_S)[:0]
        while len(turn) < MIN_TURN_RUNS or sum(turn) < TURN_S * 1e9:
            turn += self.process.sample(MIN_TURN_RUNS, TURN_S)
        self.samples_ns += turn
        self.turn_medians_ns.append(float(np.median(turn)))


def take_turns(contenders: list[Contender], scenario: Scenario, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Measures all contenders in `rounds` rounds and returns one row each, compared with the first."""
    generator = np.random.default_rng(seed)
    with ExitStack() as stack:
        series = []
        for contender in contenders:
            say(f"opening: {contender.name}")
            subject = Subject(contender.artifact, contender.runtime, scenario)
            series.append(Series(contender, stack.enter_context(MeasuringProcess(subject, TIMEOUT_S))))
        for each in series:
            each.warm_up()
        for done in range(rounds):
            for index in generator.permutation(len(series)):
                series[index].take_turn()
            if (done + 1) % 10 == 0:
                say(f"round {done + 1} of {rounds}")
        return [describe(each, series[0], seed) for each in series]


def describe(series: Series, first: Series, seed: int) -> dict[str, Any]:
    """Returns one contender's figures; `ratio` is its p50 over the first's, above 1 where the first is faster."""
    samples_ms = [sample / 1e6 for sample in series.samples_ns]
    interval = quantile_interval(samples_ms, 0.5)
    turns = zip(series.turn_medians_ns, first.turn_medians_ns, strict=True)
    ratio, ratio_interval = median_ratio([mine / firsts for mine, firsts in turns], seed=seed)
    opened, memory = series.process.opened, series.process.memory()
    return {
        "name": series.contender.name,
        "runtime": series.contender.runtime.name,
        "runtime_version": series.contender.runtime.version(),
        "model_bytes": series.contender.bytes,
        "p50_ms": float(np.median(samples_ms)),
        "p50_interval_ms": [interval.low, interval.high],
        "p95_ms": float(np.quantile(samples_ms, 0.95)),
        "min_ms": min(samples_ms),
        "ratio": ratio,
        "ratio_interval": [ratio_interval.low, ratio_interval.high],
        "samples": len(samples_ms),
        "load_ms": opened.load_ms,
        "peak_rss_bytes": memory.peak_bytes,
        "cores": opened.cores,
        "turn_medians_ms": [round(turn / 1e6, 4) for turn in series.turn_medians_ns],
    }


def measure(models: Models, contenders: list[Contender], rounds: int, work: Path) -> dict[str, Any]:
    """Returns the content of `latency.json`."""
    load = load_average()
    scenario = random_scenario(contenders[0].artifact, 1, LENGTH, seed=0)
    rows = take_turns(contenders, scenario, rounds, seed=0)
    return {
        "scenario": {"batch": 1, "length": LENGTH, "threads": 1, "rounds": rounds, "turn_s": TURN_S},
        "load_average": load,
        "contenders": rows,
        "litert": litert_report(models.quantized, work),
        "operators_ms": profile_operators(contenders[0].artifact, scenario),
    }


def main() -> None:
    """Prepares and measures the contenders and writes `latency.json`."""
    parser = make_parser("Latency of the int8 export against its peers.")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each contender")
    parser.add_argument("--litert-python", type=Path, help="Python of an environment with LiteRT; made when not given")
    arguments = parser.parse_args()
    work = arguments.work / "latency"
    models = models_of(arguments.build)
    python = arguments.litert_python or litert_environment(arguments.work)
    contenders = prepare(models, chosen_recipe(arguments), python, work)
    content = measure(models, contenders, arguments.rounds, work)
    path = write_result(arguments.results, "latency", content, PACKAGES)
    print(latency_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
