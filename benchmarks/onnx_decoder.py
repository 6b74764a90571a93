"""Decode and prefill speed of an ONNX decoder export against onnxruntime-genai's own builder, interleaved in one run.

    python -m onnxruntime_genai.models.builder -i MODEL -o BUILDER -p int4 -e cpu \
        --extra_options int4_accuracy_level=4 int4_block_size=32
    python benchmarks/onnx_decoder.py --export EXPORT --builder BUILDER --threads 2

Every round runs all contenders, in turn, so that the machine's moods hit all alike; the table gives medians over the
rounds and the median of each round's ratio to the builder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.runtimes.generation import GenerationConfig, GenerationSession, get_generation_runtime


@dataclass(frozen=True)
class Directory:
    """What a runtime opens."""

    path: Path
    kind: str = "onnx"


def measure(session: GenerationSession, prompt: np.ndarray, new_tokens: int) -> tuple[float, float]:
    """Returns prefill and decode speed, tokens a second."""
    session.reset()
    start = time.perf_counter()
    token = int(session.prefill(prompt).argmax())
    first = time.perf_counter()
    for _ in range(new_tokens):
        token = int(session.step(token).argmax())
    return len(prompt) / (first - start), new_tokens / (time.perf_counter() - first)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--export", type=Path, action="append", required=True)
    parser.add_argument("--builder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    arguments = parser.parse_args()
    config = GenerationConfig(threads=arguments.threads, context_length=arguments.context)
    sessions: dict[str, GenerationSession] = {}
    if arguments.builder is not None:
        sessions["builder, genai"] = get_generation_runtime("onnxruntime-genai").open(
            Directory(arguments.builder), config
        )
    for export in arguments.export:
        for runtime in ("onnxruntime", "onnxruntime-genai"):
            sessions[f"{export.name}, {runtime}"] = get_generation_runtime(runtime).open(Directory(export), config)
    prompt = np.random.default_rng(0).integers(100, 40000, arguments.prompt)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for count in range(arguments.rounds + 1):
        for name, session in sessions.items():
            result = measure(session, prompt, arguments.tokens)
            if count:  # the first round warms up
                found[name].append(result)
    baseline = found[next(iter(found))]
    print(f"prompt {arguments.prompt}, {arguments.tokens} new tokens", end=", ")
    print(f"{arguments.threads} threads, {arguments.rounds} rounds")
    print("| | prefill tokens/s | decode tokens/s | prefill ratio | decode ratio |\n|---|---|---|---|---|")
    for name, results in found.items():
        speeds = [statistics.median(part) for part in zip(*results, strict=True)]
        ratios = [
            statistics.median(mine[index] / other[index] for mine, other in zip(results, baseline, strict=True))
            for index in range(2)
        ]
        print(f"| {name} | {speeds[0]:.0f} | {speeds[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
