"""How the linears of a build's export are written, measured on the runtime that ships it, once for the same inputs."""

from __future__ import annotations

from pydantic import JsonValue

from edgekit.artifact import Artifact
from edgekit.benchmarking.budget import host_matches
from edgekit.benchmarking.machine import machine_fingerprint, usable_cores
from edgekit.cache import Cache
from edgekit.circumstances import verified_with
from edgekit.contract import StageInputs
from edgekit.recipe import Recipe
from edgekit.recipe_parts import ExportEntry
from edgekit.target import Target


def measure_lowering(
    cache: Cache, recipe: Recipe, model: Artifact, entry: ExportEntry, target: Target
) -> Artifact | None:
    """Returns the choice for an export and its target; None where the recipe asks for none.

    It is measured with the target's threads, or as many as this machine has, on as many rows and tokens as the export.

    Raises:
        EdgekitError: whatever `autotune` raises.
    """
    if entry.lowering == "scheme":
        return None
    threads = target.runtime(entry.runtime).threads
    here = {
        "runtime": entry.runtime,
        "threads": min(threads, len(usable_cores()) or threads),
        "batch": recipe.bench.batch,
        "length": recipe.bench.length,
        "first_token": True,
    }
    config = recipe.autotune.model_copy(update=here)
    machine = machine_fingerprint().model_dump(mode="json")
    outside: dict[str, JsonValue] = {"machine": machine, **verified_with(recipe, entry.runtime)}
    return cache.run("autotune", StageInputs(model=model), config, outside=outside).artifact


def lowering_notes(lowering: Artifact | None, target: Target) -> list[str]:
    """Returns what a person should know where the linears were measured on another machine than the target."""
    if lowering is None or host_matches(target):
        return []
    return [
        f"How its linears are written was measured on this machine, which is not {target.name}: it may not be "
        "fastest there."
    ]
