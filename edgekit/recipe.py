"""Recipes: one TOML file that says everything a build depends on, typed and validated as a whole.

A recipe knows the stage table, not how stages work. Every problem is reported at once, by file and key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from edgekit import recipe_checks
from edgekit.benchmarking.limits import merge_budgets
from edgekit.benchmarking.stage import BenchConfig, EvaluateConfig
from edgekit.contract import StageConfig
from edgekit.data.stage import PrepareConfig, prompt_splits
from edgekit.distillation.config import WriteConfig
from edgekit.errors import RecipeError, TargetError
from edgekit.exporters.check_stage import CheckConfig
from edgekit.exporters.stage import ExportConfig
from edgekit.formats import FORMATS
from edgekit.models.stage import ImportConfig
from edgekit.models.tasks import TaskConfig
from edgekit.recipe_parts import ExportEntry, Frame, RecipeStage
from edgekit.recipe_values import locate, locate_target, override
from edgekit.spelling import did_you_mean
from edgekit.stages import STAGES
from edgekit.target import Budget, Target, load_target
from edgekit.tuning.stage import AutotuneConfig
from edgekit.validation import explain

Config = TypeVar("Config", bound=StageConfig)


class Recipe(BaseModel):
    """A validated recipe."""

    model_config = ConfigDict(frozen=True)

    where: str
    """What errors call the recipe: the path of its file."""
    name: str
    seed: int
    task: TaskConfig
    teacher: ImportConfig
    data: PrepareConfig
    write: WriteConfig | None
    """How the teacher answers prompts; None: it answers none."""
    stages: list[RecipeStage]
    exports: list[ExportEntry]
    targets: dict[str, Target]
    """Every target that an export names, by that name."""
    budget: Budget
    evaluate: EvaluateConfig
    parity: CheckConfig
    bench: BenchConfig
    autotune: AutotuneConfig
    source: dict[str, JsonValue]
    """The TOML as it was read, with overrides applied."""


def recipe_directory() -> Path:
    """Returns the directory of built-in recipes."""
    return Path(__file__).parent / "recipes"


def list_recipes() -> list[str]:
    """Returns the names of the built-in recipes, sorted."""
    return sorted(path.stem for path in recipe_directory().glob("*.toml"))


def find_recipe(name_or_path: str) -> Path:
    """Returns the file of a built-in recipe, or the path itself when it ends in `.toml`.

    Raises:
        RecipeError: no such recipe; names the nearest.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"{path}: not found. Check the path; `edgekit init` writes a recipe to start from.")
        return path
    if name_or_path not in list_recipes():
        raise RecipeError(
            f"recipe '{name_or_path}' is unknown.{did_you_mean(name_or_path, list_recipes())} "
            f"Built in: {', '.join(list_recipes())}. A path to a .toml file works too."
        )
    return recipe_directory() / f"{name_or_path}.toml"


def load_recipe(name_or_path: str, overrides: dict[str, JsonValue] | None = None) -> Recipe:
    """Returns the recipe of that name or path, with dotted `overrides` (`stage.0.epochs`) applied.

    Relative paths inside a recipe are looked up beside the recipe file.

    Raises:
        RecipeError: unreadable, or one line for each unknown key, wrong type or missing part.
    """
    path = find_recipe(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not valid TOML: {error}.") from error
    for key, value in (overrides or {}).items():
        override(values, key, value)
    return parse_recipe(values, where=str(path), directory=path.parent)


def parse_recipe(values: dict[str, Any], *, where: str, directory: Path) -> Recipe:
    """Returns the recipe that `values` (parsed TOML) spell; `where` names it in errors.

    Raises:
        RecipeError: one line for each problem.
    """
    if isinstance(values.get("evaluate"), dict):
        values = {**values, "evaluate": locate(values["evaluate"], directory)}
    try:
        frame = Frame.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, Frame, where)) from error
    problems = recipe_checks.given_twice(frame, where)
    teacher_values = {**locate(frame.teacher, directory), "task": frame.task}
    teacher = _section(ImportConfig, teacher_values, f"{where}: teacher", problems)
    data_values = {**locate(frame.data, directory), "labels": frame.task.labels}
    data = _section(PrepareConfig, data_values, f"{where}: data", problems)
    stages = [_stage(entry, f"{where}: stage.{index}", problems) for index, entry in enumerate(frame.stage)]
    targets = _read_targets(frame.export, directory, where, problems)
    problems += recipe_checks.find_problems(frame, stages, targets, data, where)
    if problems or teacher is None or data is None:
        raise RecipeError("\n".join(problems))
    return Recipe(
        where=where,
        name=frame.name,
        seed=frame.seed,
        task=frame.task,
        teacher=teacher,
        data=data,
        write=frame.write or (WriteConfig() if prompt_splits(data) else None),
        stages=[stage for stage in stages if stage is not None],
        exports=frame.export,
        targets=targets,
        budget=frame.budget,
        evaluate=frame.evaluate,
        parity=frame.parity,
        bench=frame.bench,
        autotune=frame.autotune,
        source=values,
    )


def export_config(entry: ExportEntry, target: Target) -> ExportConfig:
    """Returns the export stage's configuration for a target: its operator set and IR version are ceilings."""
    if not FORMATS[entry.format].has_versions:  # no ceiling: targets share one file
        return ExportConfig(format=entry.format, precision=entry.precision, lengths=entry.lengths)
    shipped = [runtime for runtime in target.runtimes if runtime.opset is not None and runtime.ir_version is not None]
    ceilings = {name: min(getattr(runtime, name) for runtime in shipped) for name in ("opset", "ir_version") if shipped}
    return ExportConfig(format=entry.format, precision=entry.precision, **ceilings)


def bundle_name(recipe: Recipe, entry: ExportEntry, target: Target) -> str:
    """Returns the directory name of a bundle; no two exports of a recipe share one."""
    variant = "" if entry.precision == "as-is" else f"-{entry.precision}"
    written = "" if entry.format == "onnx" else f"-{entry.format}"
    mark = "-unverified" if entry.unverified == "allow" else ""
    return f"{recipe.name}-{target.name}{written}{variant}{mark}"


def merged_budget(recipe: Recipe, entry: ExportEntry, target: Target) -> Budget:
    """Returns the limits that hold: the export's, else the recipe's, else those of the target's that fit the task."""
    return merge_budgets([target.budget, recipe.budget, entry.budget], recipe.task.kind)


def _read_targets(exports: list[ExportEntry], directory: Path, where: str, problems: list[str]) -> dict[str, Target]:
    targets: dict[str, Target] = {}
    for entry in exports:
        for name in entry.targets:
            try:
                targets[name] = load_target(locate_target(name, directory))
            except TargetError as error:
                problems.append(f"{where}: export.targets: {error}")
    return targets


def _stage(values: dict[str, Any], where: str, problems: list[str]) -> RecipeStage | None:
    in_recipe = [entry.kind for entry in STAGES.values() if entry.in_recipe]
    kind = values.get("kind")
    if kind not in in_recipe:
        known = ", ".join(in_recipe)
        found = "missing" if kind is None else f"found {kind!r}"
        problems.append(f"{where}.kind: {found}.{did_you_mean(str(kind), in_recipe)} Known stages: {known}.")
        return None
    settings = {key: value for key, value in values.items() if key != "kind"}
    config = _section(STAGES[kind].config_class(), settings, f"{where} ({kind})", problems)
    return None if config is None else RecipeStage.model_construct(kind=kind, config=config)


def _section(model: type[Config], values: dict[str, Any], where: str, problems: list[str]) -> Config | None:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems.append(explain(error, model, where))
        return None
