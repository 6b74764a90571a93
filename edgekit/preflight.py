"""What a build looks at before it trains: whatever would fail afterwards fails here, or is told.

What the recipe alone tells is `recipe_checks.py`'s matter; this reads files and the imported teacher.
"""

from __future__ import annotations

from edgekit.artifact import Artifact
from edgekit.benchmarking.questions import read_questions
from edgekit.events import Event, EventSink
from edgekit.models.tasks import require_trained_head
from edgekit.recipe import Recipe
from edgekit.runtimes.generation import missing_runtime


def check_before(recipe: Recipe, events: EventSink) -> None:
    """Reads the questions, and tells of each runtime without which an export will be unverified.

    Raises:
        DataError: the questions are missing or wrong.
    """
    if recipe.evaluate.multiple_choice is not None:
        read_questions(recipe.evaluate.multiple_choice)
    if recipe.task.kind != "causal-lm":
        return
    for entry in recipe.exports:
        missing = missing_runtime(entry.format, entry.runtime)
        if missing is not None:
            text = (
                f"{entry.format} will be unverified and not bundled, for {missing.name} is not here: {missing.reason}"
            )
            events(Event("message", stage="build", text=text))


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
