"""The command line, the Python API and the recipe are three spellings of one thing."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.benchmarking.stage import BenchConfig
from edgekit.cli import run as run_command
from edgekit.cli.bench import bench as bench_command
from edgekit.contract import StageConfig, StageContext, StageInputs
from edgekit.errors import UsageError
from edgekit.recipe import parse_recipe
from edgekit.stages import STAGES, get_stage, run_stage
from tests.pico import pico_data_artifact, pico_encoder, pico_model_artifact, pico_texts

LABELS = ["negative", "positive"]
TRAINING = {"epochs": 0.5, "batch_size": 8, "precision": "float32", "evaluations_per_epoch": 1}
SETTINGS: dict[str, dict[str, object]] = {
    "finetune": TRAINING,
    "prune": {"layers": 2},
    "capture": {"use_unlabelled": False, "precision": "float32"},
    "distill": {**TRAINING, "alpha": 0.5, "temperature": 3.0},
    "quantize": {"bits": 4, "group_size": 16, "activations": "float"},
    "evaluate": {"batch_size": 8},
    "export": {"precision": "float32"},
    "autotune": {"min_samples": 5, "min_seconds": 0.01, "length": 8, "pairs": 5, "margin": 0.1},
    "check": {"rows": 8},
    "bench": {
        "min_samples": 30,
        "min_seconds": 0.01,
        "length": 8,
        "decide_p95_ms": 1000.0,
        "max_seconds": 2.0,
        "timeout_s": 60.0,
        "interval_width": 0.5,
        "pairs": 5,
        "memory_limit_mib": 4000,
        "margin": 0.1,
    },
}
"""Settings that differ from the defaults, for the stages that read artifacts."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("artifacts")
    model = pico_model_artifact(root / "model")
    data = pico_data_artifact(root / "data", rows=80)
    exported = edgekit.export(model, out=root / "onnx")
    one_layer = edgekit.prune(model, edgekit.PruneConfig(layers=1), out=root / "layer")
    codes = edgekit.quantize(one_layer, out=root / "codes")
    return {"model": model, "teacher": model, "data": data, "onnx": exported, "codes": codes}


def inputs_of(kind: str, artifacts: dict[str, Artifact]) -> dict[str, Path]:
    """Returns role to path for the roles that `kind` needs."""
    roles = {role: artifacts[role].path for role in get_stage(kind).needs if role in artifacts}
    if kind in ("check", "bench"):
        roles["model"] = artifacts["onnx"].path
    if kind == "autotune":
        roles["model"] = artifacts["codes"].path
    if kind == "check":
        roles["reference"] = artifacts["model"].path
    return roles


def flags(settings: dict[str, object]) -> list[str]:
    """Spells settings as command line flags."""
    words: list[str] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + name.replace("_", "-"))
        else:
            words += [flag, str(value)]
    return words


@pytest.mark.parametrize("kind", SETTINGS)
def test_command_and_function_make_the_same_artifact(kind, artifacts, tmp_path):
    roles = inputs_of(kind, artifacts)
    model = roles.pop("model", None)
    config = getattr(edgekit, get_stage(kind).config)(**SETTINGS[kind])
    by_function = getattr(edgekit, kind)(model, config, out=tmp_path / "function", seed=3, **roles)
    words = [kind, *([str(model)] if model else []), str(tmp_path / "command"), *flags(SETTINGS[kind]), "--seed", "3"]
    for role, path in roles.items():
        words += [f"--{role}", str(path)]
    assert run_command(words) == 0
    by_command = Artifact.open(tmp_path / "command")
    assert by_command.lineage == by_function.lineage
    if kind not in ("autotune", "bench"):  # no two measurements are the same
        assert by_command.digest == by_function.digest


def test_bench_has_a_flag_for_every_setting_with_the_same_default():
    parameters = inspect.signature(bench_command).parameters
    settings = BenchConfig.model_fields
    swept = {"sweep_runtimes", "sweep_threads"}  # --runtime and --threads take several
    assert set(settings) - swept <= set(parameters)
    for name in set(settings) - swept - {"threads"}:
        assert parameters[name].default == settings[name].default, name


@pytest.mark.parametrize("kind", [kind for kind, entry in STAGES.items() if entry.in_recipe])
def test_recipe_spells_the_same_config(kind, tmp_path):
    stage = {"kind": kind, **SETTINGS[kind]}
    recipe = parse_recipe(recipe_values(tmp_path, stage=[stage]), where="recipe.toml", directory=tmp_path)
    assert recipe.stages[0].config == STAGES[kind].config_class()(**SETTINGS[kind])


def test_import_and_prepare_have_the_same_three_spellings(tmp_path):
    values = recipe_values(tmp_path, stage=[{"kind": "prune", "layers": 2}])
    recipe = parse_recipe(values, where="recipe.toml", directory=tmp_path)
    imported = edgekit.import_model(config=recipe.teacher, out=tmp_path / "teacher", seed=3)
    prepared = edgekit.prepare(config=recipe.data, out=tmp_path / "data", seed=3)
    label_flags = [word for label in LABELS for word in ("--task.labels", label)]
    source = str(tmp_path / "encoder")
    assert (
        run_command(["import", source, str(tmp_path / "t2"), *label_flags, "--seed", "3", "--task.max-length", "32"])
        == 0
    )
    labels = [word for label in LABELS for word in ("--labels", label)]
    assert run_command(["prepare", str(tmp_path / "data.csv"), str(tmp_path / "d2"), *labels, "--seed", "3"]) == 0
    assert Artifact.open(tmp_path / "t2").digest == imported.digest
    assert Artifact.open(tmp_path / "d2").digest == prepared.digest


def recipe_values(directory: Path, **changes: object) -> dict[str, object]:
    """Returns a valid recipe on pico input that lies in `directory`."""
    if not (directory / "encoder").exists():
        pico_encoder(directory / "encoder")
    texts, labels = pico_texts(60)
    rows = "\n".join(f"{text},{LABELS[label]}" for text, label in zip(texts, labels, strict=True))
    (directory / "data.csv").write_text(f"text,label\n{rows}\n")
    return {
        "name": "pico",
        "seed": 3,
        "task": {"labels": LABELS, "max_length": 32},
        "teacher": {"source": "encoder"},
        "data": {"source": "data.csv"},
        "stage": [{"kind": "prune", "layers": 2}],
        "export": [{"targets": ["laptop-x86"]}],
        **changes,
    }


def test_every_stage_is_a_command_a_function_and_documented():
    for kind, entry in STAGES.items():
        name = "import_model" if kind == "import" else kind
        assert name in dir(edgekit)
        assert getattr(edgekit, entry.config) is entry.config_class()
        for field, info in entry.config_class().model_fields.items():
            assert info.description, f"{entry.config}.{field} has no docstring, so its flag has no help"


def test_unknown_stage_names_the_nearest():
    with pytest.raises(UsageError, match=re.escape("'quantise' is unknown. Did you mean 'quantize'?")):
        get_stage("quantise")


def test_missing_role_says_which_flag(artifacts, tmp_path):
    inputs = StageInputs(model=artifacts["model"])
    with pytest.raises(UsageError, match=r"finetune: needs a data artifact and none was given\."):
        run_stage("finetune", inputs, edgekit.FinetuneConfig(), StageContext(tmp_path / "out"))


def test_config_of_another_stage_is_refused(artifacts, tmp_path):
    inputs = StageInputs(model=artifacts["model"])
    with pytest.raises(UsageError, match="prune: found a StageConfig, expected a PruneConfig"):
        run_stage("prune", inputs, StageConfig(), StageContext(tmp_path / "out"))


def test_role_that_a_stage_does_not_take_is_refused(artifacts, tmp_path):
    with pytest.raises(UsageError, match="quantize: takes no 'teacher'"):
        edgekit.quantize(artifacts["model"], out=tmp_path / "out", teacher=artifacts["model"])
