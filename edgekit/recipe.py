"""Recipes: one TOML file that says everything a build depends on, typed and validated as a whole.

A recipe knows the stage table, not how stages work. Every problem is reported at once, by file and key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edgekit.benchmarking.limits import merge_budgets, misplaced_limits
from edgekit.benchmarking.stage import BenchConfig, EvaluateConfig
from edgekit.contract import StageConfig
from edgekit.data.stage import PrepareConfig
from edgekit.errors import RecipeError, TargetError
from edgekit.exporters.check_stage import CheckConfig
from edgekit.exporters.stage import ExportConfig
from edgekit.models.stage import ImportConfig
from edgekit.models.tasks import TaskConfig
from edgekit.spelling import did_you_mean
from edgekit.stages import STAGES
from edgekit.target import Budget, Target, load_target
from edgekit.validation import explain

Config = TypeVar("Config", bound=StageConfig)


class ExportEntry(BaseModel):
    """One `[[export]]`: a format, how it is written, and the targets it ships to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["onnx"] = "onnx"
    """The file format."""
    runtime: str = "onnxruntime"
    """The runtime that ships it: it is checked and measured with this one."""
    precision: Literal["as-is", "float32", "float16"] = "as-is"
    """`as-is` keeps the student's codes; the others write floats."""
    targets: list[str] = Field(min_length=1)
    """Names of built-in targets, or paths to target files."""
    budget: Budget = Budget()
    """Limits for this export alone; they go before the recipe's and the target's."""


class RecipeStage(BaseModel):
    """One `[[stage]]` after validation."""

    model_config = ConfigDict(frozen=True)

    kind: str
    config: StageConfig


class Recipe(BaseModel):
    """A validated recipe."""

    model_config = ConfigDict(frozen=True)

    name: str
    seed: int
    task: TaskConfig
    teacher: ImportConfig
    data: PrepareConfig
    stages: list[RecipeStage]
    exports: list[ExportEntry]
    targets: dict[str, Target]
    """Every target that an export names, by that name."""
    budget: Budget
    evaluate: EvaluateConfig
    parity: CheckConfig
    bench: BenchConfig
    source: dict[str, JsonValue]
    """The TOML as it was read, with overrides applied."""


class _Frame(BaseModel):
    """The top level of a recipe file; sections are validated by the classes of their stages afterwards."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: TaskConfig
    teacher: dict[str, Any]
    data: dict[str, Any]
    stage: list[dict[str, Any]]
    export: list[ExportEntry] = Field(min_length=1)
    budget: Budget = Budget()
    evaluate: EvaluateConfig = EvaluateConfig()
    parity: CheckConfig = CheckConfig()
    bench: BenchConfig = BenchConfig()


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
        _override(values, key, value)
    return parse_recipe(values, where=str(path), directory=path.parent)


def parse_recipe(values: dict[str, Any], *, where: str, directory: Path) -> Recipe:
    """Returns the recipe that `values` (parsed TOML) spell; `where` names it in errors.

    Raises:
        RecipeError: one line for each problem.
    """
    try:
        frame = _Frame.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, _Frame, where)) from error
    problems: list[str] = []
    teacher_values = {**_locate(frame.teacher, directory), "task": frame.task}
    teacher = _section(ImportConfig, teacher_values, f"{where}: teacher", problems)
    data_values = {**_locate(frame.data, directory), "labels": frame.task.labels}
    data = _section(PrepareConfig, data_values, f"{where}: data", problems)
    stages = [_stage(entry, f"{where}: stage.{index}", problems) for index, entry in enumerate(frame.stage)]
    targets: dict[str, Target] = {}
    for entry in frame.export:
        for name in entry.targets:
            try:
                targets[name] = load_target(_locate_target(name, directory))
            except TargetError as error:
                problems.append(f"{where}: export.targets: {error}")
    problems += _repeated_exports(frame.export, where)
    problems += misplaced_limits(frame.budget, frame.task.kind, f"{where}: budget")
    for index, entry in enumerate(frame.export):
        problems += misplaced_limits(entry.budget, frame.task.kind, f"{where}: export.{index}.budget")
    problems += [] if data is None else _unknown_splits(frame.evaluate, data, where)
    if problems or teacher is None or data is None:
        raise RecipeError("\n".join(problems))
    return Recipe(
        name=frame.name,
        seed=frame.seed,
        task=frame.task,
        teacher=teacher,
        data=data,
        stages=[stage for stage in stages if stage is not None],
        exports=frame.export,
        targets=targets,
        budget=frame.budget,
        evaluate=frame.evaluate,
        parity=frame.parity,
        bench=frame.bench,
        source=values,
    )


def export_config(entry: ExportEntry, target: Target) -> ExportConfig:
    """Returns the export stage's configuration for a target: its operator set and IR version are ceilings."""
    ceiling = target.runtime(entry.runtime)
    return ExportConfig(
        format=entry.format, precision=entry.precision, opset=ceiling.opset, ir_version=ceiling.ir_version
    )


def bundle_name(recipe: Recipe, entry: ExportEntry, target: Target) -> str:
    """Returns the directory name of a bundle; no two exports of a recipe share one."""
    variant = "" if entry.precision == "as-is" else f"-{entry.precision}"
    return f"{recipe.name}-{target.name}{variant}"


def merged_budget(recipe: Recipe, entry: ExportEntry, target: Target) -> Budget:
    """Returns the limits that hold: the export's, else the recipe's, else those of the target's that fit the task."""
    return merge_budgets([target.budget, recipe.budget, entry.budget], recipe.task.kind)


def _repeated_exports(exports: list[ExportEntry], where: str) -> list[str]:
    """Returns a problem for each target that gets the same export twice: the bundles would overwrite each other."""
    seen: set[tuple[str, str, str]] = set()
    problems = []
    for index, entry in enumerate(exports):
        for name in entry.targets:
            key = (entry.format, entry.precision, name)
            if key in seen:
                problems.append(
                    f"{where}: export.{index}.targets: found '{name}' again for the same export. Remove it."
                )
            seen.add(key)
    return problems


def _unknown_splits(evaluate: EvaluateConfig, data: PrepareConfig, where: str) -> list[str]:
    """Returns a problem for each split that the data will not have: better now than after the training."""
    known = ["test", "validation", "train", *data.extra_tests]
    return [
        f"{where}: evaluate.splits: found '{name}', which the data does not have.{did_you_mean(name, known)} "
        f"Labelled splits: {', '.join(known)}."
        for name in evaluate.splits
        if name not in known
    ]


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


def _locate(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Makes every `source` that names a file beside the recipe absolute, at any depth."""
    located: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            located[key] = _locate(value, directory)
        elif key == "source" and isinstance(value, str) and not value.startswith("pkg:"):
            beside = directory / value
            located[key] = str(beside.resolve()) if beside.exists() else value
        else:
            located[key] = value
    return located


def _locate_target(name: str, directory: Path) -> str:
    beside = directory / name
    return str(beside) if name.endswith(".toml") and beside.is_file() else name


def _override(values: dict[str, Any], key: str, value: JsonValue) -> None:
    """Sets the value at a dotted key; list positions are numbers."""
    current: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(current, list):
            if not part.isdigit() or int(part) >= len(current):
                raise RecipeError(f"--set {key}: '{part}' is not one of the positions 0 to {len(current) - 1}.")
            position: Any = int(part)
        elif isinstance(current, dict):
            position = part
            if not is_last and part not in current:
                current[part] = {}
        else:
            raise RecipeError(f"--set {key}: '{parts[depth - 1]}' holds a value, not keys.")
        if is_last:
            current[position] = value
        else:
            current = current[position]
