"""What a build looks at before it trains: whatever would fail afterwards fails here, or is told.

What the recipe alone tells is `recipe_checks.py`'s matter; this reads files and the imported teacher.
"""

from __future__ import annotations

from edgekit.artifact import Artifact
from edgekit.benchmarking.questions import read_questions
from edgekit.benchmarking.statistics import paired_half_width
from edgekit.data.prepared import PreparedData
from edgekit.data.stage import source_problems
from edgekit.errors import ModelError, RecipeError
from edgekit.events import Event, EventSink
from edgekit.exporters import executorch_needs, litert_needs
from edgekit.exporters.coreml_needs import require_coremltools
from edgekit.models.source import find_local, is_on_hub
from edgekit.models.tasks import require_trained_head
from edgekit.recipe import Recipe, merged_budget
from edgekit.recipe_parts import ExportEntry
from edgekit.runtimes.generation import missing_runtime
from edgekit.runtimes.protocol import MissingRuntime, get_runtime, runtime_elsewhere

_LEAST_DIFFERING = 0.02
_USUAL_ACCURACY = 0.9
"""A student that agrees with its teacher as well as is plausible: they differ on one row in 50."""
_LEAST_LIMIT = 0.001
"""Below it more than 80,000 rows are needed."""


def check_before(recipe: Recipe, events: EventSink) -> None:
    """Looks for every source and runtime, reads the questions, and tells what will be unverified without its runtime.

    Raises:
        RecipeError: a source is not found; one line for each.
        DataError: the questions are missing or wrong.
        EnvironmentLacksError: a package that a source is in is not installed, or a classifier's runtime, unless the
            format is one that other systems run.
    """
    require_sources(recipe)
    if recipe.evaluate.multiple_choice is not None:
        read_questions(recipe.evaluate.multiple_choice)
    if recipe.task.kind != "causal-lm":
        for entry in recipe.exports:
            if entry.format == "coreml":
                require_coremltools()
            missing = runtime_elsewhere(entry.format, entry.runtime)
            if missing is None:
                get_runtime(entry.runtime)
            else:
                _tell_unverified(entry, missing, events)
            if entry.format == "litert":
                litert_needs.require_converter()
            elif entry.format == "executorch":
                executorch_needs.require_converter()
        return
    for entry in recipe.exports:
        missing = missing_runtime(entry.format, entry.runtime)
        if missing is not None:
            _tell_unverified(entry, missing, events)


def _tell_unverified(entry: ExportEntry, missing: MissingRuntime, events: EventSink) -> None:
    bundled = "bundled all the same" if entry.unverified == "allow" else "not bundled"
    text = f"{entry.format} will be unverified and {bundled}, for {missing.name} is not here: {missing.reason}"
    events(Event("message", stage="build", text=text))


def require_sources(recipe: Recipe) -> None:
    """Does nothing where the text and the teacher are to be found; the hub is not asked.

    Raises:
        RecipeError: one is not found; names recipe and key.
        EnvironmentLacksError: a package that one is in is not installed.
    """
    problems = {f"data.{key}": problem for key, problem in source_problems(recipe.data).items()}
    try:
        if not is_on_hub(recipe.teacher.source):
            find_local(recipe.teacher.source)
    except ModelError as error:
        problems["teacher.source"] = str(error)
    if problems:
        advice = "Put it there, or correct the key; paths are looked up beside the recipe."
        raise RecipeError("\n".join(f"{recipe.where}: {key}: {text} {advice}" for key, text in problems.items()))


def check_quality_limits(recipe: Recipe, data: Artifact, events: EventSink) -> None:
    """Tells of each limit on a classifier's accuracy that the rows to evaluate on cannot decide, however it is trained.

    The rule: even a student that is right as often as its teacher (on 90 % of the rows) and differs from it on 2 % of
    them alone would have an interval that goes beyond the limit.
    """
    if recipe.task.kind != "text-classification":
        return
    splits, most = recipe.evaluate.splits, recipe.evaluate.max_rows
    sizes = PreparedData.open(data).rows
    rows = sum(sizes[name] if most is None else min(sizes[name], most) for name in splits)
    budgets = (merged_budget(recipe, entry, recipe.targets[name]) for entry in recipe.exports for name in entry.targets)
    half_width = _narrowest(rows)
    for limit in sorted({budget.quality_drop for budget in budgets if budget.quality_drop is not None}):
        if half_width > limit:
            text = (
                f"quality_drop = {limit:g} will be inconclusive on the {rows:,} rows of {' + '.join(splits)}: even if "
                f"the student differed from its teacher on {_LEAST_DIFFERING:.0%} of them alone, the 95 % interval of "
                f"the change would reach {100 * half_width:.1f} points down. {_remedy(limit)}"
            )
            events(Event("message", stage="build", text=text))


def _narrowest(rows: int) -> float:
    return paired_half_width(rows, differing=_LEAST_DIFFERING, accuracy=_USUAL_ACCURACY)


def _remedy(limit: float) -> str:
    """Returns what to do about too few rows; nobody has as many as a limit near 0 takes."""
    if limit < _LEAST_LIMIT:
        return "Raise the limit."
    rows = 10
    while _narrowest(rows) > limit:
        rows += max(10, rows // 20 // 10 * 10)
    return f"Take about {rows:,} rows, or raise the limit."


def check_teacher(recipe: Recipe, teacher: Artifact) -> None:
    """Does nothing where such a model can be learned from, and every export be written, as far as its parts tell.

    Raises:
        ModelError: its head was never trained and, before a stage distils from it, nothing trains it.
        UnsupportedError: an architecture or a tokenizer that llama.cpp does not have.
    """
    kinds = [stage.kind for stage in recipe.stages]
    if "distill" in kinds and kinds[0] != "finetune":
        require_trained_head(teacher, "distill")
    if any(entry.format == "gguf" for entry in recipe.exports):
        from edgekit.exporters.gguf_stage import require_expressible

        require_expressible(teacher)
