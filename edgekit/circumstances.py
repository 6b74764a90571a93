"""What a verification or an evaluation depends on besides its inputs: runtimes, the processor, a file of questions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pydantic import JsonValue

from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.benchmarking.questions import questions_digest
from edgekit.formats import FORMATS
from edgekit.recipe import Recipe
from edgekit.runtimes.generation import list_generation_runtimes, load_generation_runtime
from edgekit.runtimes.protocol import get_runtime


def verified_with(recipe: Recipe, *runtimes: str) -> dict[str, JsonValue]:
    """Returns what a verification depends on besides its inputs: the runtimes' versions, and the processor.

    Kernels differ between versions and processors, so a result of an older runtime or of another machine does not stand
    for this one. A runtime that is not here has no version: once it is installed, its exports are verified.
    """
    return run_with(*runtimes, writes=recipe.task.kind == "causal-lm")


def run_with(*runtimes: str, writes: bool = False) -> dict[str, JsonValue]:
    """Returns the runtimes' versions, of those that write where `writes`, and the processor."""
    machine = machine_fingerprint()
    versions: dict[str, JsonValue] = {name: _version(name, writes=writes) for name in runtimes}
    return {**versions, "cpu": machine.cpu, "cpu_features": list[JsonValue](machine.cpu_features)}


def written_with(name: str) -> dict[str, JsonValue]:
    """Returns what a file of the format `name` depends on besides its inputs: the version of what converts it.

    None where that is not here, which the export says.
    """
    converter = FORMATS[name].converter
    if converter is None:
        return {}
    try:
        return {"converter": version(converter)}
    except PackageNotFoundError:
        return {"converter": None}


def judged_with(recipe: Recipe, *runtimes: str) -> dict[str, JsonValue]:
    """Returns what an evaluation depends on besides its inputs: as a verification, and on the questions' file."""
    asked = recipe.evaluate.multiple_choice
    questions: dict[str, JsonValue] = {} if asked is None else {"questions": questions_digest(asked)}
    return {**verified_with(recipe, *runtimes), **questions}


def _version(runtime: str, *, writes: bool) -> str | None:
    if writes:
        writer = load_generation_runtime(list_generation_runtimes()[runtime])
        return None if writer.unavailable_reason() is not None else writer.version()
    found = get_runtime(runtime, must_be_here=False)
    return None if found.unavailable_reason() is not None else found.version()
