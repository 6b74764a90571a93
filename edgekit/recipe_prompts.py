"""Whether the prompts of a recipe are answered in time, and whether a limit on answers can be decided at all."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.data.stage import PrepareConfig, prompt_splits, split_forms
from edgekit.recipe_parts import Frame, RecipeStage

Stages = Sequence[RecipeStage | None]


def prompt_problems(frame: Frame, data: PrepareConfig, stages: Stages, where: str) -> list[str]:
    """Returns one sentence for each split of prompts that nobody could answer, and each limit that nothing decides."""
    return _unanswered(frame, data, stages, where) + _undecidable(frame, data, where)


def _unanswered(frame: Frame, data: PrepareConfig, stages: Stages, where: str) -> list[str]:
    """Returns a problem for each split of prompts that would be learned or judged on without a teacher's answers."""
    if frame.task.kind != "causal-lm":
        problem = f"{where}: write: found for the task '{frame.task.kind}', expected causal-lm. Remove it."
        return [] if frame.write is None else [problem]
    prompts = prompt_splits(data)
    written = prompts if frame.write is None or frame.write.splits is None else frame.write.splits
    problems = [
        f"{where}: write.splits: found {', '.join(written)}, expected '{name}' as well: nothing can be learned from a "
        "prompt without its answer. Add it."
        for name in prompts
        if name not in written
    ]
    if all(stage is None or stage.kind != "finetune" for stage in stages):
        return problems
    early = {"train", "validation", *frame.evaluate.splits}
    return problems + [
        f"{where}: data: found prompts in the split '{name}' and a stage 'finetune', which makes the teacher that "
        "is to answer them. Answer them before (`edgekit write`), or leave the split out."
        for name in prompts
        if name in early
    ]


def _undecidable(frame: Frame, data: PrepareConfig, where: str) -> list[str]:
    """Returns a problem for each limit on answers for which no prompt is asked, or too few."""
    budgets = {"budget": frame.budget}
    budgets |= {f"export.{index}.budget": entry.budget for index, entry in enumerate(frame.export)}
    limits = {key: budget.answered for key, budget in budgets.items() if budget.answered is not None}
    if not limits:
        return []
    from edgekit.benchmarking.statistics import wilson_interval

    forms = split_forms(data)
    asked = frame.evaluate.answers * sum(forms.get(name) in ("chat", "prompt") for name in frame.evaluate.splits)
    if not asked:
        return [
            f"{where}: {key}.answered: found a limit and no prompt to ask, expected evaluate.answers above 0 and a "
            "split of form 'chat' or 'prompt' in evaluate.splits. Add one, or remove the limit."
            for key in limits
        ]
    surest = wilson_interval(asked, asked).low
    return [
        f"{where}: {key}.answered: found {limit:g}, which {asked} prompts cannot decide: were all answered, the "
        f"95 % interval would begin at {surest:.2f}. Ask more (evaluate.answers), or lower the limit."
        for key, limit in limits.items()
        if limit > surest
    ]
