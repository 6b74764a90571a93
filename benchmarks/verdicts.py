"""Whether verdicts are right on a noisy machine: a model against itself, and against one with 10 % more work.

    python benchmarks/verdicts.py [--repeats 20] [--at-most 10]

The model is a stack of 10 equal feed-forward layers with random weights; the other one has 11. Each comparison is one
of `edgekit bench --compare`, with fresh processes and a seed of its own. The model against its own copy must never be
better or worse, and against the longer one it must be better. Pairs of the runs of the model against itself are then
judged as `edgekit compare` does with two measurements taken apart.

Every comparison is kept in the work directory, so a killed run goes on where it was; `--at-most` makes one run short.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import make_parser, say, write_result
from tables import verdicts_table

from edgekit.artifact import Artifact, Lineage, publish, write_atomically
from edgekit.benchmarking.harness import compare
from edgekit.benchmarking.process import Subject
from edgekit.benchmarking.scenario import random_scenario
from edgekit.benchmarking.series import Sampling
from edgekit.events import ignore
from edgekit.results import Comparison
from edgekit.runtimes.protocol import get_runtime

LAYERS, MORE_LAYERS = 10, 11
HIDDEN, FEED_FORWARD, VOCABULARY = 256, 1024, 1000
LENGTH = 64
OPSET = 21
CASES = {"same": LAYERS, "10 % more": MORE_LAYERS}
PACKAGES = ("onnxruntime", "numpy")


def write_stack(layers: int, out: Path) -> Artifact:
    """Publishes a classifier of `layers` equal layers as an `onnx` artifact; the same layers give the same file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> Any:
        values = (generator.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return numpy_helper.from_array(values, name)

    initializers = [weights("table", VOCABULARY, HIDDEN), numpy_helper.from_array(np.array([1]), "tokens")]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden0"])]
    for layer in range(layers):
        initializers += [weights(f"up{layer}", HIDDEN, FEED_FORWARD), weights(f"down{layer}", FEED_FORWARD, HIDDEN)]
        nodes += [
            helper.make_node("MatMul", [f"hidden{layer}", f"up{layer}"], [f"wide{layer}"]),
            helper.make_node("Tanh", [f"wide{layer}"], [f"active{layer}"]),
            helper.make_node("MatMul", [f"active{layer}", f"down{layer}"], [f"hidden{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"hidden{layers}", "tokens"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    initializers.append(weights("head", HIDDEN, 2))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "stack", [ids], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    with publish(out, kind="onnx", lineage=Lineage(stage="source")) as directory:
        (directory / "onnx").mkdir()
        onnx.save(model, directory / "onnx" / "model.onnx")
        (directory / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
        task = {"task": "text-classification", "labels": ["a", "b"], "max_length": LENGTH}
        (directory / "task.json").write_text(json.dumps(task))
    return Artifact.open(out)


def stack(layers: int, work: Path, name: str) -> Subject:
    """Returns the classifier of `layers` layers, written to `name` unless it is there."""
    out = work / name
    model = Artifact.open(out) if out.is_dir() else write_stack(layers, out)
    return Subject(model, get_runtime("onnxruntime"), random_scenario(model, 1, LENGTH, seed=0))


def take_comparisons(work: Path, repeats: int, at_most: int, sampling: Sampling) -> dict[str, list[Comparison]]:
    """Returns the comparisons of each case, alternating between the cases; takes `at_most` that are missing."""
    first = stack(LAYERS, work, "first")
    others = {case: stack(layers, work, f"second-{layers}") for case, layers in CASES.items()}
    found: dict[str, list[Comparison]] = {case: [] for case in CASES}
    for repeat in range(repeats):
        for case, other in others.items():
            file = work / f"{other.model.path.name}-{repeat}.json"
            if not file.is_file():
                if at_most == 0:
                    return found
                at_most -= 1
                taken = compare(first, other, sampling, seed=repeat, events=ignore)
                write_atomically(file, taken.model_dump_json())
            found[case].append(Comparison.model_validate_json(file.read_text(encoding="utf-8")))
            last = found[case][-1]
            interval = f"{last.ratio_interval.low:.3f} to {last.ratio_interval.high:.3f}"
            say(f"{case}, repeat {repeat + 1}: {last.ratio_p50:.3f} ({interval}), {last.verdict}")
    return found


def describe(comparisons: list[Comparison]) -> dict[str, Any]:
    """Returns the ratios, intervals and verdicts of one case, and what the machine did beside it."""
    conditions = [each.first.conditions for each in comparisons]
    return {
        "verdicts": [each.verdict for each in comparisons],
        "ratios": [round(each.ratio_p50, 4) for each in comparisons],
        "intervals": [[round(each.ratio_interval.low, 4), round(each.ratio_interval.high, 4)] for each in comparisons],
        "pair_ratios": [[round(ratio, 4) for ratio in each.pair_ratios] for each in comparisons],
        "p50_ms": [round(each.first.p50_ms, 4) for each in comparisons],
        "other_work_shares": [found and found.other_work_share for found in conditions],
        "stolen_shares": [found and found.stolen_share for found in conditions],
    }


def main() -> None:
    """Takes the comparisons and, when all are there, writes `verdicts.json`."""
    parser = make_parser("Verdicts on a model against itself, and against one with 10 % more work.")
    parser.add_argument("--repeats", type=int, default=20, help="comparisons of each case")
    parser.add_argument("--at-most", type=int, default=1000, help="comparisons to take in this run")
    parser.add_argument("--min-seconds", type=float, default=2.4, help="seconds of sampling of each model at least")
    arguments = parser.parse_args()
    work = arguments.work / "verdicts"
    sampling = Sampling(min_seconds=arguments.min_seconds)
    found = take_comparisons(work, arguments.repeats, arguments.at_most, sampling)
    if any(len(taken) < arguments.repeats for taken in found.values()):
        say("not all comparisons are there yet: run this again")
        return
    some = found["same"][0]
    content = {
        "settings": {
            "layers": list(CASES.values()),
            "length": LENGTH,
            "threads": 1,
            "pairs": sampling.pairs,
            "min_seconds": sampling.min_seconds,
            "margin": some.margin,
            "confidence": some.ratio_interval.confidence,
        },
        "cases": {case: describe(taken) for case, taken in found.items()},
    }
    path = write_result(arguments.results, "verdicts", content, PACKAGES)
    print(verdicts_table(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
